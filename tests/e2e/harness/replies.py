"""What every reply about a rule must look like, whatever the test is about."""

from .prosody import HOST
from .stanzas import AMP, AMP_ERRORS, CLIENT, STANZAS, rules_of

KINDS = {
    "unsupported-actions": ("400", "bad-request"),
    "unsupported-conditions": ("400", "bad-request"),
    "invalid-rules": ("405", "not-acceptable"),
}


def check_reply(stanza, status, *, id, sender, recipient, rule, host=HOST):
    """A reply about a rule that was met: R3, R27 to R29, R44, R47 to R50, R53 to R55, R65."""
    assert stanza.id == id, f"R3, R28: the id is {stanza.id!r}"
    assert stanza.sender == host, f"the reply comes from {stanza.sender!r}"
    assert stanza.to == sender, f"the reply goes to {stanza.to!r}"
    assert stanza.body is None, "R29: the body came back"
    assert stanza.status == status, f"R44, R50, R53: status {stanza.status!r}"
    assert stanza.amp.get("from") == sender, f"R54: {stanza.amp.get('from')!r}"
    assert stanza.amp.get("to") == recipient, f"R55: {stanza.amp.get('to')!r}"
    assert stanza.rules == [rule], f"R27: the rules are {stanza.rules}"
    if status != "error":
        assert stanza.type != "error", f"{status} as an error"
        assert stanza.error is None
        return
    assert stanza.type == "error", "R47: type is not error"
    assert stanza.error.get("type") == "modify", "R48"
    assert stanza.error.get("code") == "500", "R65"
    assert stanza.condition == "undefined-condition", "R49"
    failed = stanza.error.find(f"{{{AMP_ERRORS}}}failed-rules")
    assert failed is not None, "R47: no failed-rules"
    assert rules_of(failed, AMP_ERRORS) == [rule], "R47: which rule?"


def check_refusal(stanza, element, *, id, sender, named, echoed):
    """A refusal that names rules: R3, R17, R29, R61 to R63, R66."""
    code, condition = KINDS[element]
    check_error(stanza, "modify", code, condition, id=id, sender=sender)
    found = stanza.error.find(f"{{{AMP}}}{element}")
    assert found is not None, f"R61, R62, R63: no <{element}/> in {stanza}"
    assert rules_of(found, AMP) == named, f"R17, R18: names {rules_of(found, AMP)}"
    assert stanza.amp is not None, "R66: the rules are not echoed"
    assert stanza.rules == echoed, f"R66: echoes {stanza.rules}"
    for attribute in ("status", "from", "to"):
        assert stanza.amp.get(attribute) is None, f"R66: {attribute} on the echo"


def check_error(stanza, kind, code, condition, *, id, sender):
    """Any stanza error to the sender."""
    assert stanza.id == id, f"R3: the id is {stanza.id!r}"
    assert stanza.to == sender, f"the reply goes to {stanza.to!r}"
    assert stanza.type == "error", f"no error: {stanza}"
    assert stanza.condition == condition, f"{stanza.condition!r} in {stanza}"
    assert stanza.error.get("type") == kind, f"{stanza.error.get('type')!r} in {stanza}"
    if code is not None:
        assert stanza.error.get("code") == code, f"code {stanza.error.get('code')!r} in {stanza}"
    defined = [c for c in stanza.error if c.tag.startswith(f"{{{STANZAS}}}")]
    assert len([c for c in defined if not c.tag.endswith("}text")]) == 1
    assert stanza.element.find(f"{{{CLIENT}}}body") is None, "R29: the body came back"
