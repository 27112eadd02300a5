"""Stanzas as text that can be compared between two runs: what is random is taken out."""

import re
import xml.etree.ElementTree as ET

from .stanzas import DELAY, MAM, STANZA_ID

#: Accounts have numbers, so that no two tests share one.
PERSON = re.compile(r"\b([a-z]+)\d+@")

#: How ejabberd's archive said it before there were stanza ids.
ARCHIVED = "{urn:xmpp:mam:tmp}archived"

#: What the interceptor gives as a stanza id begins so; an archive's ids don't.
OWN = "amphora-"


def canonical(element):
    """One line: names in Clark's notation, attributes sorted, ids and times as words."""
    attributes = "".join(
        f" {name}={plain(element, name, value)!r}" for name, value in sorted(element.attrib.items())
    )
    inside = (element.text or "").strip() + "".join(
        canonical(child) + (child.tail or "").strip() for child in element
    )
    return f"<{element.tag}{attributes}>{without_number(inside)}</>"


def without_number(text):
    """Addresses of people as all runs have them."""
    return PERSON.sub(r"\1@", text)


def plain(element, name, value):
    """The value of an attribute without what differs from run to run."""
    if name == "stamp":
        return "TIME"
    if element.tag == f"{{{STANZA_ID}}}stanza-id" and name == "id":
        return "OWN" if value.startswith(OWN) else "ARCHIVE"
    if element.tag == ARCHIVED and name == "id":
        return "ARCHIVE"
    if element.tag == f"{{{MAM}}}result":
        return {"id": "ARCHIVE", "queryid": "QUERY"}[name]
    return without_number(value)


def without(element, unwanted):
    """A copy that lacks the descendants for which `unwanted(element)` is true."""
    copy = ET.fromstring(ET.tostring(element))
    for parent in list(copy.iter()):
        for child in [c for c in parent if unwanted(c)]:
            parent.remove(child)
    return copy


def is_delay(element):
    """Whether it is a `<delay/>`."""
    return element.tag == f"{{{DELAY}}}delay"


def is_own_id(element):
    """Whether it is a stanza id that the interceptor gave."""
    return element.tag == f"{{{STANZA_ID}}}stanza-id" and element.get("id", "").startswith(OWN)
