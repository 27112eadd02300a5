//! Any bytes at all against the framer, the tree, the message and the request: the bodies of the fuzz
//! targets, run on bytes that are nearly XML.

use proptest::prelude::*;

#[path = "../../fuzz/properties.rs"]
mod properties;

/// Pieces that XML is made of, and pieces that break it.
fn piece() -> impl Strategy<Value = String> {
    let known = prop::sample::select(
        "< > / ' \" = & ; ! ? [ ] - \\ : <a> </a> <a/> <b> </b> <b  c='d'> <p:a> </p:a> \
         xmlns='urn:x' xmlns:p='urn:p' xmlns='' p:q='r' xml:lang='de' <![CDATA[ ]]> ]] <!-- --> <!DOCTYPE \
         <?xml ?> &amp; &lt; &#65; &#x10FFFF; &#0; &#xD800; &lol; \u{e9} \u{10ffff} \u{fffe} \0 \u{1} \u{feff} \
         <message xmlns='jabber:client' from='a@b/c'> </message> <delay from='example.org' \
         xmlns='urn:xmpp:delay'/> <amp xmlns='http://jabber.org/protocol/amp' <rule </amp> status='alert' \
         <body/> </stream:stream> <stream:stream>"
            .split(' ')
            .map(str::to_owned)
            .chain([" ".to_owned(), "\r\n".to_owned(), "\t".to_owned()])
            .collect::<Vec<_>>(),
    );
    prop_oneof![8 => known, 1 => any::<String>()]
}

fn soup() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(piece(), 0..24).prop_map(|pieces| pieces.concat().into_bytes())
}

/// A well-formed element, as text in one of many spellings.
fn tree() -> impl Strategy<Value = String> {
    let text = prop::sample::select(vec![
        "",
        "t",
        " \r\n ",
        "&amp;&#13;&#x9;",
        "<![CDATA[<a>]]]]>",
        "\u{e9}\u{1f600}",
        "]] >",
        "'\"",
    ]);
    let attributes = prop::sample::select(vec![
        "",
        " a='1'",
        " a=\"'>\" b = '&#10;&quot;\t'",
        " xml:lang='de'",
        " xmlns='urn:x'",
        " xmlns=''",
        " xmlns:p='urn:p' p:a='1' a='2'",
        " xmlns='http://x/?a=1&amp;b=2'",
    ]);
    let name = prop::sample::select(vec!["a", "b", "long-name.1", "\u{e9}", "xml:a"]);
    let leaf = (name.clone(), attributes.clone(), text.clone()).prop_map(|(n, a, t)| {
        if t.is_empty() { format!("<{n}{a}/>") } else { format!("<{n}{a}>{t}</{n} >") }
    });
    leaf.prop_recursive(5, 40, 6, move |inner| {
        let children = prop::collection::vec((text.clone(), inner), 0..6);
        (name.clone(), attributes.clone(), children).prop_map(|(n, a, children)| {
            let inside: String =
                children.into_iter().flat_map(|(t, c)| [t.to_owned(), c]).collect();
            format!("<{n}{a}>{inside}</{n}>")
        })
    })
}

/// A message that mostly is well-formed, in which a piece of soup may stand.
fn message() -> impl Strategy<Value = String> {
    let child = prop_oneof![
        Just("<delay xmlns='urn:xmpp:delay' from='example.org'/>".to_owned()),
        Just(
            "<d:delay xmlns:d='urn:xmpp:dela&#121;' from='EXAMPLE.ORG'>x<a/></d:delay>".to_owned()
        ),
        Just("<delay xmlns='urn:xmpp:delay' from='other.example'/>".to_owned()),
        Just("<amp xmlns='http://jabber.org/protocol/amp'><rule/></amp>".to_owned()),
        tree(),
        piece(),
    ];
    prop::collection::vec(child, 0..6).prop_map(|children| {
        format!("<message xmlns='jabber:client' from='a@b/c'>{}</message>", children.concat())
    })
}

/// A request for stored messages that mostly is one, in which a piece of soup may stand.
fn request() -> impl Strategy<Value = String> {
    let pick = |of: &'static [&'static str]| prop::sample::select(of);
    let node = "[0-9]{0,8}-?[0-9]{0,14}";
    let item = (pick(&["view", "remove", "burn", ""]), node)
        .prop_map(|(action, node)| format!("<item action='{action}' node='{node}'/>"));
    let child = prop_oneof![
        6 => item,
        1 => pick(&["<fetch/>", "<purge/>", "<item/>"]).prop_map(str::to_owned),
        1 => tree(),
        1 => piece(),
    ];
    let offline = prop::collection::vec(child, 0..4).prop_map(|inside| {
        format!("<offline xmlns='http://jabber.org/protocol/offline'>{}</offline>", inside.concat())
    });
    let disco = pick(&["info", "items"]).prop_map(|what| {
        format!(
            "<query xmlns='http://jabber.org/protocol/disco#{what}' \
             node='http://jabber.org/protocol/offline'/>"
        )
    });
    let payload = prop_oneof![4 => offline, 1 => disco, 1 => tree()];
    let jid = pick(&["bob@example.org/p", "b&apos;@example.org/&lt;&#9;>", "bob@h/p", "bob", ""]);
    let from = pick(&["", " from='bob@example.org/p'", " to='bob@example.org'", " to='h'"]);
    let kind = pick(&["get", "set", "result"]);
    (jid, from, kind, payload).prop_map(|(jid, from, kind, payload)| {
        format!(
            "<retrieve xmlns='urn:amphora:intercept:1' session='s&amp;1' jid='{jid}'>\
             <forwarded xmlns='urn:xmpp:forward:0'><iq xmlns='jabber:client' type='{kind}' \
             id='&quot;'{from}>{payload}</iq></forwarded></retrieve>"
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn framer_on_any_bytes(data in prop::collection::vec(any::<u8>(), 0..300)) {
        properties::framer(&data);
    }

    #[test]
    fn framer_on_soup(data in soup()) {
        properties::framer(&data);
        properties::framer(&[b"<?xml version='1.0'?>\n<s>", data.as_slice()].concat());
    }

    #[test]
    fn framer_on_trees(trees in prop::collection::vec(tree(), 0..4)) {
        properties::framer(format!("<s> {} </s> ", trees.join("\n")).as_bytes());
    }

    #[test]
    fn element_on_soup(data in soup()) {
        properties::element(&data);
        properties::element(&[b"<a xmlns='urn:a'>", data.as_slice(), b"</a>"].concat());
    }

    #[test]
    fn element_on_trees(tree in tree()) {
        prop_assert!(amphora::xml::Element::parse(&tree).is_ok(), "{}", tree);
        properties::element(tree.as_bytes());
    }

    #[test]
    fn stanza_on_any_bytes(data in prop::collection::vec(any::<u8>(), 0..300)) {
        properties::stanza(&data);
    }

    #[test]
    fn crossing_on_any_bytes(kind in 0_u8..12, data in prop::collection::vec(any::<u8>(), 0..300)) {
        properties::crossing(&[&[kind], data.as_slice()].concat());
    }

    #[test]
    fn crossing_on_small_numbers(data in prop::collection::vec(0_u8..6, 0..40)) {
        properties::crossing(&data);
    }

    #[test]
    fn retrieve_on_any_bytes(data in prop::collection::vec(any::<u8>(), 0..300)) {
        properties::retrieve(&data);
    }

    #[test]
    fn retrieve_on_requests(request in request()) {
        properties::retrieve(request.as_bytes());
    }

    #[test]
    fn stanza_on_messages(message in message()) {
        properties::stanza(message.as_bytes());
    }
}

/// Pieces of commands, and what breaks them.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(
        "{ } [ ] , : \" \\ \"do\": \"start\" \"add\" \"list\" \"status\" \"broadcast\": 1 -1 1e9 true null \"host\": \
         \"everyone\": \"stanza\": \"expires_at\": \"rate\": \"recipients\": \"a@b\" \\u0000 \\ud800 \
         {\"do\":\"list\"} {\"do\":\"status\",\"broadcast\":3}"
            .split(' ')
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    );
    let piece = prop_oneof![8 => known, 1 => any::<String>()];
    prop::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn i7_any_line_is_a_command_or_answered(line in line()) {
        properties::control(&line);
    }

    #[test]
    fn i7_any_bytes_are_a_command_or_answered(line in prop::collection::vec(any::<u8>(), 0..64)) {
        properties::control(&line);
    }
}
