//! The replies, word for word.

use proptest::prelude::*;
use quick_xml::events::Event;

use super::super::check;
use super::super::testing::{amp, any_amp, element, rule_set};
use super::*;

const ENVELOPE: Envelope = Envelope {
    host: "hamlet.lit",
    sender: "bernardo@hamlet.lit/elsinore",
    recipient: "francisco@hamlet.lit/pda",
    id: Some("chatty2"),
};

fn reply(action: &str) -> Option<String> {
    rule_reply(
        &rule_set(&[("drop", "deliver", "none"), (action, "deliver", "stored")]),
        1,
        &ENVELOPE,
    )
}

#[test]
fn r3_r27_r28_r29_r44_r53_r54_r55_alert() {
    assert_eq!(
        reply("alert").unwrap(),
        "<message xmlns='jabber:client' from='hamlet.lit' to='bernardo@hamlet.lit/elsinore' id='chatty2'>\
         <amp xmlns='http://jabber.org/protocol/amp' status='alert' \
         from='bernardo@hamlet.lit/elsinore' to='francisco@hamlet.lit/pda'>\
         <rule action='alert' condition='deliver' value='stored'/></amp></message>"
    );
}

#[test]
fn r50_r53_notify() {
    assert_eq!(
        reply("notify").unwrap(),
        "<message xmlns='jabber:client' from='hamlet.lit' to='bernardo@hamlet.lit/elsinore' id='chatty2'>\
         <amp xmlns='http://jabber.org/protocol/amp' status='notify' \
         from='bernardo@hamlet.lit/elsinore' to='francisco@hamlet.lit/pda'>\
         <rule action='notify' condition='deliver' value='stored'/></amp></message>"
    );
}

#[test]
fn r47_r48_r49_r53_r65_r66_error() {
    assert_eq!(
        reply("error").unwrap(),
        "<message xmlns='jabber:client' from='hamlet.lit' to='bernardo@hamlet.lit/elsinore' id='chatty2' type='error'>\
         <amp xmlns='http://jabber.org/protocol/amp' status='error' \
         from='bernardo@hamlet.lit/elsinore' to='francisco@hamlet.lit/pda'>\
         <rule action='error' condition='deliver' value='stored'/></amp>\
         <error type='modify' code='500'>\
         <undefined-condition xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
         <failed-rules xmlns='http://jabber.org/protocol/amp#errors'>\
         <rule action='error' condition='deliver' value='stored'/></failed-rules>\
         </error></message>"
    );
}

#[test]
fn r46_drop_is_silent() {
    assert_eq!(reply("drop"), None);
    assert_eq!(rule_reply(&rule_set(&[("alert", "deliver", "none")]), 1, &ENVELOPE), None);
}

#[test]
fn r27_the_value_is_told_as_it_was_written() {
    let value = "2026-11-22T05:00:00.0000+00:00";
    let rules = rule_set(&[("notify", "expire-at", value)]);
    assert!(rule_reply(&rules, 0, &ENVELOPE).unwrap().contains(&format!("value='{value}'/>")));
}

/// The `<error/>` of the refusal of these rules, and what comes before it.
fn refused(rules: &[(&str, &str, &str)]) -> (String, String) {
    let amp = [amp(&[], rules)];
    let refusal = check(&amp, ENVELOPE.id).unwrap_err();
    let reply = refusal_reply(&refusal, &ENVELOPE, &amp);
    let (before, error) = reply.split_at(reply.find("<error").unwrap());
    (before.into(), error.into())
}

#[test]
fn r17_r61_r62_r63_r66_the_errors() {
    let (rule_a, rule_b) =
        ("<rule action='drop' condition='deliver' value='none'/>", "value='it&apos;s'/>");
    for (bad, general, name) in [
        (
            ("it's", "deliver", "none"),
            "type='modify' code='400'><bad-request",
            "unsupported-actions",
        ),
        (
            ("drop", "it's", "none"),
            "type='modify' code='400'><bad-request",
            "unsupported-conditions",
        ),
        (("drop", "deliver", "it's"), "type='modify' code='405'><not-acceptable", "invalid-rules"),
    ] {
        let (before, error) = refused(&[("drop", "deliver", "none"), bad]);
        assert!(before.starts_with(
            "<message xmlns='jabber:client' from='hamlet.lit' to='bernardo@hamlet.lit/elsinore' \
             id='chatty2' type='error'><amp xmlns='http://jabber.org/protocol/amp'><rule "
        ));
        assert!(before.contains(rule_a) && before.matches("<rule ").count() == 2, "{before}");
        assert!(before.contains("it&apos;s") && before.ends_with("</amp>"), "{before}");
        let start = format!(
            "<error {general} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
             <{name} xmlns='http://jabber.org/protocol/amp'><rule action="
        );
        assert!(error.starts_with(&start), "{error}");
        assert!(error.ends_with(&format!("/></{name}></error></message>")), "{error}");
        assert_eq!(error.matches("<rule ").count(), 1, "only the bad one: {error}");
        assert_eq!(error.contains(rule_b), name == "invalid-rules");
    }
}

#[test]
fn r71_r72_not_permitted_is_not_acceptable() {
    let amp = [amp(&[], &[("drop", "deliver", "none"), ("notify", "deliver", "direct")])];
    let reply = refusal_reply(&Refusal::NotPermitted(vec![1]), &ENVELOPE, &amp);
    assert!(reply.ends_with(
        "<error type='modify' code='405'>\
         <not-acceptable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
         <invalid-rules xmlns='http://jabber.org/protocol/amp'>\
         <rule action='notify' condition='deliver' value='direct'/></invalid-rules>\
         </error></message>"
    ));
}

#[test]
fn r25_r64_no_support_ahead() {
    let amp = [amp(&[], &[("drop", "deliver", "none")])];
    assert_eq!(
        refusal_reply(&Refusal::ServiceUnavailable, &ENVELOPE, &amp),
        "<message xmlns='jabber:client' from='hamlet.lit' to='bernardo@hamlet.lit/elsinore' id='chatty2' type='error'>\
         <amp xmlns='http://jabber.org/protocol/amp'>\
         <rule action='drop' condition='deliver' value='none'/></amp>\
         <error type='cancel' code='503'>\
         <service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
    );
}

#[test]
fn r1_r2_r56_r60_what_is_malformed_is_a_plain_bad_request() {
    for refusal in [Refusal::MissingId, Refusal::SeveralAmp, Refusal::BadPerHop, Refusal::NoRule] {
        let envelope =
            Envelope { id: Some("").filter(|_| refusal == Refusal::MissingId), ..ENVELOPE };
        assert_eq!(
            refusal_reply(&refusal, &envelope, &[amp(&[("per-hop", "maybe")], &[])]),
            "<message xmlns='jabber:client' from='hamlet.lit' to='bernardo@hamlet.lit/elsinore' type='error'>\
             <amp xmlns='http://jabber.org/protocol/amp' per-hop='maybe'></amp>\
             <error type='modify' code='400'>\
             <bad-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
        );
    }
}

#[test]
fn r57_attributes_that_are_absent_stay_so() {
    let amp =
        [element("amp", &[], vec![element("rule", &[("value", ""), ("extra", "x")], vec![])])];
    let reply = refusal_reply(&check(&amp, Some("id")).unwrap_err(), &ENVELOPE, &amp);
    assert_eq!(reply.matches("<rule value=''/>").count(), 2, "{reply}");
}

#[test]
fn limits_hold_for_what_is_repeated() {
    let long = "é".repeat(MAX_ECHO);
    let rules = vec![("drop", "deliver", long.as_str()); MAX_RULES + 1];
    let (before, error) = refused(&rules);
    assert_eq!(before.matches("<rule ").count(), MAX_RULES);
    assert_eq!(error.matches("<rule ").count(), MAX_RULES);
    assert!(error.contains(&format!("value='{}'", "é".repeat(MAX_ECHO / 2))));
}

#[test]
fn o2_a_plain_stanza_error() {
    assert_eq!(
        bounce("bob@hamlet.lit", "al@x.lit/1", None, StanzaError::SERVICE_UNAVAILABLE),
        "<message xmlns='jabber:client' from='bob@hamlet.lit' to='al@x.lit/1' type='error'>\
         <error type='cancel' code='503'>\
         <service-unavailable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></message>"
    );
    let policy = bounce("b@h", "a@x", Some("1"), StanzaError::POLICY_VIOLATION);
    assert!(policy.contains("<error type='modify'><policy-violation "));
}

/// Reads to the end: tags balanced, attributes whole, entities known.
fn is_well_formed(xml: &str) -> bool {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut depth = 0;
    loop {
        let start = match reader.read_event() {
            Ok(Event::Eof) => return depth == 0,
            Ok(Event::Start(tag)) => {
                depth += 1;
                tag
            }
            Ok(Event::Empty(tag)) => tag,
            Ok(Event::End(_)) => {
                depth -= 1;
                continue;
            }
            _ => return false,
        };
        let whole = start.attributes().all(|attribute| {
            attribute.is_ok_and(|a| a.normalized_value(quick_xml::XmlVersion::Explicit1_0).is_ok())
        });
        if !whole {
            return false;
        }
    }
}

proptest! {
    #[test]
    fn replies_are_well_formed(amp in any_amp(), text in ".{0,20}", id in prop::option::of(".{0,20}")) {
        let envelope = Envelope { host: "h", sender: &text, recipient: &text, id: id.as_deref() };
        let refusal = check(&amp, envelope.id).err().unwrap_or(Refusal::InvalidRules(vec![0]));
        let refused = refusal_reply(&refusal, &envelope, &amp);
        prop_assert!(is_well_formed(&refused), "{}", refused);
        let met = rule_reply(&rule_set(&[("error", "deliver", "none")]), 0, &envelope).unwrap();
        prop_assert!(is_well_formed(&met), "{}", met);
        prop_assert!(is_well_formed(&bounce(&text, &text, id.as_deref(), StanzaError::BAD_REQUEST)));
    }
}

/// The examples of `docs/rules.md`, each as one line without the space between elements.
fn documented() -> Vec<String> {
    let blocks = include_str!("../../../docs/rules.md").split("```xml\n").skip(1);
    let lines = |block: &str| {
        let lines = block.split("```").next().unwrap_or_default().lines().map(str::trim);
        lines
            .map(|line| if line.starts_with('<') { line.into() } else { format!(" {line}") })
            .collect()
    };
    blocks.map(lines).collect()
}

#[test]
fn the_documentation_shows_what_is_sent() {
    let envelope = Envelope {
        host: "example.org",
        sender: "romeo@example.net/orchard",
        recipient: "juliet@example.org",
        id: Some("m1"),
    };
    let rules = rule_set(&[
        ("error", "expire-at", "2026-11-22T17:00:00Z"),
        ("notify", "deliver", "stored"),
    ]);
    let bad = [amp(&[], &[("drop", "deliver", "stored"), ("drop", "expire-at", "tomorrow")])];
    let refusal = check(&bad, envelope.id).unwrap_err();
    let [_, notify, error, refused] = &documented()[..] else {
        panic!("another number of examples");
    };
    assert_eq!(rule_reply(&rules, 1, &envelope).as_ref(), Some(notify));
    assert_eq!(rule_reply(&rules, 0, &envelope).as_ref(), Some(error));
    assert_eq!(refusal_reply(&refusal, &envelope, &bad), *refused);
}
