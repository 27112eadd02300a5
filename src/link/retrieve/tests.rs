//! Requests as clients make them, and as they should not.

use proptest::prelude::*;

use super::*;
use crate::words::LinkId;

const OFFLINE: &str = "http://jabber.org/protocol/offline";

fn retrieve(attrs: &str, iq: &str) -> Element {
    Element::parse(&format!(
        "<retrieve xmlns='urn:amphora:intercept:1' {attrs}>\
         <forwarded xmlns='urn:xmpp:forward:0'>{iq}</forwarded></retrieve>"
    ))
    .unwrap()
}

fn asked(kind: &str, payload: &str) -> Result<Ask, Refused> {
    let iq =
        format!("<iq xmlns='jabber:client' type='{kind}' id='q' from='bob@h/p'>{payload}</iq>");
    let request = read(&retrieve("session='s-r1' jid='bob@h/p'", &iq), "h").unwrap();
    assert_eq!((&*request.name, &*request.user), ("s-r1", "bob@h"));
    assert_eq!((&*request.jid, &*request.id), ("bob@h/p", "q"));
    request.ask
}

fn offline(kind: &str, inside: &str) -> Result<Ask, Refused> {
    asked(kind, &format!("<offline xmlns='{OFFLINE}'>{inside}</offline>"))
}

fn condition(ask: Result<Ask, Refused>) -> &'static str {
    ask.expect_err("it was taken").condition
}

#[test]
fn f2_f4_the_count_and_the_list_are_disco_on_the_node() {
    let query = |ns: &str, node: &str| format!("<query xmlns='{ns}' node='{node}'/>");
    assert_eq!(asked("get", &query(ns::DISCO_INFO, OFFLINE)), Ok(Ask::Count));
    assert_eq!(asked("get", &query(ns::DISCO_ITEMS, OFFLINE)), Ok(Ask::List));
    for payload in [query(ns::DISCO_INFO, "other"), query("urn:x", OFFLINE), String::new()] {
        assert_eq!(condition(asked("get", &payload)), "feature-not-implemented");
    }
    assert_eq!(condition(asked("set", &query(ns::DISCO_INFO, OFFLINE))), "feature-not-implemented");
}

#[test]
fn f6_f7_f8_items_fetch_and_purge() {
    let (one, two) = (MessageId::new(1, 1), MessageId::new(7, 812));
    let item = |action: &str, id: MessageId| format!("<item action='{action}' node='{id}'/>");
    let view = item("view", two) + &item("view", one);
    assert_eq!(offline("get", &view), Ok(Ask::View(vec![two, one])));
    assert_eq!(offline("set", &item("remove", one)), Ok(Ask::Remove(vec![one])));
    for kind in ["get", "set"] {
        assert_eq!(offline(kind, "<fetch/>"), Ok(Ask::Fetch));
    }
    assert_eq!(offline("set", "<purge/>"), Ok(Ask::Purge));
    assert_eq!(offline("set", "<purge/><new xmlns='urn:new'/>"), Ok(Ask::Purge));
}

#[test]
fn f5_what_is_none_of_our_names_is_not_found() {
    for node in ["", "x", "1-", "2003-02-27T22:52:37.225Z", "9999999999-1", "-1-1"] {
        let item = format!("<item action='view' node='{node}'/>");
        assert_eq!(condition(offline("get", &item)), "item-not-found", "{node}");
    }
}

#[test]
fn what_xep_0013_does_not_allow_is_a_bad_request() {
    let item = "<item action='view' node='1-1'/>";
    for (kind, inside) in [
        ("get", ""),
        ("get", "text"),
        ("get", "<unknown/>"),
        ("get", "<fetch xmlns='urn:other'/>"),
        ("get", "<item node='1-1'/>"),
        ("get", "<item action='view'/>"),
        ("get", "<item action='burn' node='1-1'/>"),
        ("set", "<fetch/><purge/>"),
        ("set", "<purge/><purge/>"),
        ("get", "<purge/>"),
        ("get", "<item action='remove' node='1-1'/>"),
        ("set", &format!("{item}<item action='remove' node='1-1'/>")),
        ("set", &format!("{item}<fetch/>")),
        ("set", &format!("<fetch/>{item}")),
        ("set", &format!("{item}<unknown/>")),
        ("result", "<fetch/>"),
    ] {
        assert_eq!(condition(offline(kind, inside)), "bad-request", "{kind} {inside}");
    }
    let items = |n: usize| item.repeat(n);
    assert!(offline("get", &items(MAX_ITEMS)).is_ok());
    assert_eq!(condition(offline("get", &items(MAX_ITEMS + 1))), "policy-violation");
}

#[test]
fn f5_f9_nobody_asks_for_somebody_else() {
    let fetch = format!("<offline xmlns='{OFFLINE}'><fetch/></offline>");
    let iq =
        |attrs: &str| format!("<iq xmlns='jabber:client' type='get' id='q' {attrs}>{fetch}</iq>");
    let ask = |attrs| read(&retrieve("session='s' jid='bob@h/p'", &iq(attrs)), "h").unwrap().ask;
    assert_eq!(ask("to='bob@h' from='bob@h/p'"), Ok(Ask::Fetch));
    for attrs in ["to='alice@h'", "to='h'", "to='bob@h/p'", "from='alice@h/p'", "from='bob@h/q'"] {
        assert_eq!(ask(attrs), Err(Refused::FORBIDDEN), "{attrs}");
    }
    // The interceptor of one host says nothing about the users of another.
    for attrs in [
        "session='s' jid='bob@other/p'",
        "session='s' jid='bob@h'",
        "session='s' jid='bob@h/'",
        "session='s' jid='@h/p'",
        "session='s' jid='h/p'",
        "session='s' jid=''",
        "session='' jid='bob@h/p'",
        "jid='bob@h/p'",
        "session='s'",
    ] {
        assert!(read(&retrieve(attrs, &iq("")), "h").is_err(), "{attrs}");
    }
    assert!(read(&retrieve("session='s' jid='bob@h/p'", "<iq type='get'/>"), "h").is_err());
}

fn replied(answer: Answer) -> Element {
    let asker = Asker {
        link: LinkId(1),
        host: "h".into(),
        request: "a1".into(),
        name: "s-r1".into(),
        user: "b'b@h".into(),
        jid: "b'b@h/<p>".into(),
        id: "\"&q".into(),
    };
    let mut out = String::new();
    reply(&mut out, &Retrieved { asker, answer });
    let iq = Element::parse(&out).unwrap();
    assert!(iq.is("iq", ns::CLIENT));
    assert_eq!((iq.attr("to"), iq.attr("id")), (Some("b'b@h/<p>"), Some("\"&q")));
    iq
}

#[test]
fn f2_the_count_is_a_form() {
    let iq = replied(Answer::Count(66));
    assert_eq!(iq.attr("type"), Some("result"));
    let query = iq.child("query", ns::DISCO_INFO).unwrap();
    assert_eq!(query.attr("node"), Some(OFFLINE));
    let identity = query.child("identity", ns::DISCO_INFO).unwrap();
    assert_eq!(identity.attr("category"), Some("automation"));
    assert_eq!(identity.attr("type"), Some("message-list"));
    assert_eq!(query.child("feature", ns::DISCO_INFO).unwrap().attr("var"), Some(OFFLINE));
    let form = query.child("x", ns::FORMS).unwrap();
    let field = |at: usize| {
        let field = &form.children[at];
        (field.attr("var").unwrap(), &*field.children[0].text)
    };
    assert_eq!(field(0), ("FORM_TYPE", OFFLINE));
    assert_eq!(field(1), ("number_of_messages", "66"));
}

#[test]
fn f4_the_list_names_sender_and_node() {
    let id = MessageId::new(1, 2);
    let listed = vec![Listed { id, sender: "a@h/it's <me>".into() }];
    let iq = replied(Answer::List(listed));
    let query = iq.child("query", ns::DISCO_ITEMS).unwrap();
    let item = &query.children[0];
    assert_eq!(item.attr("jid"), Some("b'b@h"));
    assert_eq!(item.attr("name"), Some("a@h/it's <me>"));
    assert_eq!(item.attr("node").unwrap().parse(), Ok(id));
    let empty = replied(Answer::List(Vec::new()));
    assert_eq!(empty.child("query", ns::DISCO_ITEMS).unwrap().children, []);
}

#[test]
fn errors_have_a_type_a_condition_and_a_text() {
    let iq = replied(Answer::Refused(Refused::NOT_FOUND));
    assert_eq!(iq.attr("type"), Some("error"));
    let error = iq.child("error", ns::CLIENT).unwrap();
    assert_eq!(error.attr("type"), Some("cancel"));
    assert!(error.child("item-not-found", ns::STANZAS).is_some());
    assert!(!error.child("text", ns::STANZAS).unwrap().text.is_empty());
}

proptest! {
    #[test]
    fn i7_no_request_panics(
        attrs in "( session='s')?( jid='[a@/h]{0,6}')?( jid='b@h/p')?",
        kind in "(get|set|result|)",
        inside in "(<(item|fetch|purge|offline|query)( action='(view|remove|x)')?( node='[0-9-]{0,16}')?/>){0,4}",
    ) {
        let iq = format!(
            "<iq xmlns='jabber:client' type='{kind}'><offline xmlns='{OFFLINE}'>{inside}</offline></iq>"
        );
        if let Ok(element) = Element::parse(&format!(
            "<retrieve xmlns='urn:amphora:intercept:1'{attrs}>\
             <forwarded xmlns='urn:xmpp:forward:0'>{iq}</forwarded></retrieve>"
        )) {
            let _ = read(&element, "h");
        }
    }
}
