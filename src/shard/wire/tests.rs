//! What is written comes back; what is not, does no harm.

use proptest::prelude::*;

use super::*;
use crate::amp::{self, Refusal, Session};
use crate::shard::effect::{Do, HandOver, Item, Verdict};
use crate::shard::input::{Asked, Available, Intercept, Leg, Sent, Stage, Taken};
use crate::shard::request::Errand;
use crate::shard::retrieve::{Answer, Ask, Asker, Listed, Refused, Retrieve, Retrieved};
use crate::stanza::Message;
use crate::store::Fate;
use crate::time::Timestamp;
use crate::words::MessageId;

const PEER: u32 = 7;
const LINK: LinkId = LinkId(3);
const BOB: &str = "bob@example.org";

fn bytes_of(entry: &Entry) -> Bytes {
    let mut out = Vec::new();
    entry.write(&mut out);
    assert!(out.len() <= entry.size(), "it is larger than it says");
    out.into()
}

fn read(entry: &Entry) -> Crossing {
    Crossing::read(bytes_of(entry), PEER).unwrap()
}

/// As it is read by the node that the link is not of.
fn as_of_peer(text: &str) -> String {
    let own = format!("{LINK:?}");
    text.replace(&own, &format!("{:?}", LinkId::of_peer(PEER, LINK.number())))
}

fn crosses(input: &Input) {
    let user: Bare = BOB.into();
    let body = Entry::body_of_ask(&user, input).unwrap();
    let entry = Entry::ask(ShardId(300), 70_000, false, body.clone());
    let Crossing::Ask { shard, epoch, user: of, input: read } = read(&entry) else {
        panic!("not an ask")
    };
    assert_eq!((shard, epoch, &*of), (ShardId(300), 70_000, BOB));
    assert_eq!(format!("{read:?}"), as_of_peer(&format!("{input:?}")));
    let (_, own) = read_input(body, 0).unwrap();
    assert_eq!(format!("{own:?}"), format!("{input:?}"), "its own links are its own again");
}

fn intercept(rules: &str) -> Intercept {
    let raw = format!(
        "<message xmlns='jabber:client' from='alice@example.org/desk' to='{BOB}/phone' id='m1' \
         type='chat'><body>☃</body>{rules}</message>"
    );
    let message = Message::parse(raw.into(), "example.org").unwrap();
    let checked =
        (!message.amp.is_empty()).then(|| amp::check(&message.amp, message.id.as_deref()));
    Intercept {
        link: LINK,
        host: "example.org".into(),
        key: "key-1".into(),
        after: Some("key-0".into()),
        again: false,
        stage: Stage::Offline,
        leg: Leg::Recipient,
        to: BOB.into(),
        account: true,
        archived: false,
        sessions: vec![
            Session { resource: "phone".into(), priority: -128, hibernating: true },
            Session { resource: "☎".into(), priority: 127, hibernating: false },
        ],
        forwards_to: false,
        gateway: true,
        stamp: Timestamp::from_micros(1_700_000_000_123_456),
        message,
        silent: false,
        rules: checked,
    }
}

fn asker() -> Asker {
    Asker {
        link: LINK,
        host: "example.org".into(),
        request: "r7".into(),
        name: "retrieval-1".into(),
        user: BOB.into(),
        jid: format!("{BOB}/phone"),
        id: "view1".into(),
    }
}

#[test]
fn intercepts_cross() {
    let rule = "<amp xmlns='http://jabber.org/protocol/amp'>\
                <rule action='notify' condition='deliver' value='stored'/></amp>";
    crosses(&Input::Intercept(Box::new(intercept(""))));
    crosses(&Input::Intercept(Box::new(intercept(rule))));
    crosses(&Input::Intercept(Box::new(intercept(&rule.replace("stored", "nonsense")))));
    for refusal in [
        Refusal::MissingId,
        Refusal::SeveralAmp,
        Refusal::BadPerHop,
        Refusal::NoRule,
        Refusal::TooManyRules,
        Refusal::ServiceUnavailable,
        Refusal::UnsupportedConditions(vec![0, 300]),
        Refusal::UnsupportedActions(vec![1]),
        Refusal::InvalidRules(vec![]),
        Refusal::NotPermitted(vec![2]),
    ] {
        let rules = Some(Err(refusal));
        crosses(&Input::Intercept(Box::new(Intercept { rules, ..intercept(rule) })));
    }
    for stage in [Stage::Rules, Stage::Offline, Stage::Undelivered] {
        for leg in [
            Leg::Recipient,
            Leg::Sender { next_supports_amp: true },
            Leg::Sender { next_supports_amp: false },
        ] {
            let (after, silent, again) = (None, true, true);
            let of = Intercept { stage, leg, after, silent, again, ..intercept(rule) };
            crosses(&Input::Intercept(Box::new(of)));
        }
    }
}

#[test]
fn i2_what_is_sent_again_says_so() {
    let body = Entry::body_of_ask(&BOB.into(), &Input::Intercept(Box::new(intercept(""))));
    let entry = Entry::ask(ShardId(1), 1, true, body.unwrap());
    let Crossing::Ask { input: Input::Intercept(read), .. } = read(&entry) else { panic!() };
    assert!(read.again);
}

#[test]
fn all_that_links_say_crosses() {
    let (host, session) = ("example.org".into(), "session-1".into());
    let archive = Some(Timestamp::from_micros(-5));
    let user: Bare = BOB.into();
    crosses(&Input::Available(Available {
        link: LINK,
        host,
        session,
        n: u64::MAX,
        user: user.clone(),
        archive,
        batch_bytes: 262_144,
    }));
    let ids = vec![MessageId::ZERO, MessageId::new(MessageId::MAX_EPOCH, MessageId::MAX_COUNTER)];
    let (host, session) = ("example.org".into(), "session-1".into());
    crosses(&Input::Taken(Taken {
        link: LINK,
        host,
        session,
        user: user.clone(),
        batch: 1 << 40,
        ids: ids.clone(),
        ended: true,
    }));
    let asked = Asked { link: LINK, host: "example.org".into(), request: "r'1".into() };
    let at = Timestamp::from_micros(12);
    crosses(&Input::AccountRemoved { user: user.clone(), at, asked });
    for sent in [Sent::Done, Sent::Failed] {
        crosses(&Input::Sent { user: user.clone(), id: ids[1], sent });
    }
    for ask in [
        Ask::Count,
        Ask::List,
        Ask::Fetch,
        Ask::Purge,
        Ask::View(ids.clone()),
        Ask::Remove(ids.clone()),
    ] {
        crosses(&Input::Retrieve(Retrieve { asker: asker(), ask, batch_bytes: 1 }));
    }
    for stays in [Input::Tick, Input::LinkDown(LINK), Input::Written(Vec::new())] {
        assert_eq!(Entry::body_of_ask(&user, &stays), None, "{stays:?}");
    }
}

fn tells(what: ToLink) {
    let link = LinkId::of_peer(PEER, 3);
    let Crossing::Tell { link, what: read } = read(&Entry::tell(link, &what).unwrap()) else {
        panic!("not told")
    };
    assert_eq!((link, read), (LINK, what), "the link is one of its own");
}

#[test]
fn all_that_shards_say_crosses() {
    let host = || "example.org".into();
    for what in [Do::Deliver, Do::Stored, Do::Discarded, Do::Retry] {
        for stage in [Stage::Rules, Stage::Offline, Stage::Undelivered] {
            let sends = vec!["<message/>".to_owned(), String::new()];
            let (key, silent) = ("k".into(), what == Do::Deliver);
            tells(ToLink::Verdict(Verdict { host: host(), key, stage, what, silent, sends }));
        }
    }
    let item = |n| Item {
        id: MessageId::new(1, n),
        stamp: Timestamp::from_micros(99),
        stanza: Bytes::from_static(b"<message/>"),
    };
    for view in [true, false] {
        let items = vec![item(1), item(2)];
        let session = "s".into();
        tells(ToLink::HandOver(HandOver { host: host(), session, batch: 1 << 33, view, items }));
    }
    tells(ToLink::HandedOver { host: host(), session: "s".into(), n: 4, count: 5 });
    tells(ToLink::Deleted { host: host(), session: "s".into(), batch: 6 });
    tells(ToLink::AccountRemoved { host: host(), request: "r".into(), done: false });
    let listed = vec![Listed { id: MessageId::new(1, 1), sender: "a@b/c".into() }];
    let refused = Refused::BY_SHARDS.map(Answer::Refused);
    for answer in
        [Answer::Done, Answer::Count(u64::MAX), Answer::List(listed)].into_iter().chain(refused)
    {
        tells(ToLink::Retrieved(Retrieved { asker: asker(), answer }));
    }
}

#[test]
fn all_else_crosses() {
    let send = Send {
        user: BOB.into(),
        id: MessageId::new(1, 1),
        key: "k/1".into(),
        stanza: "<message/>".into(),
    };
    assert!(matches!(read(&Entry::send(&send)), Crossing::Send(read) if read == send));
    let to: Bare = BOB.into();
    for ask in [
        Errand::Settle { key: "send-1".into(), to, again: true, stanza: "<message/>".into() },
        Errand::Accounts { after: "bob".into(), max: 500 },
    ] {
        let request = Request { number: 5, host: "example.org".into(), ask };
        assert!(
            matches!(read(&Entry::request(&request)), Crossing::Request(read) if read == request)
        );
    }
    let fates = [Fate::Delivered, Fate::Stored, Fate::Discarded, Fate::Expired, Fate::Cancelled];
    let others = [
        Answered::Accounts { names: vec!["a".into()], complete: true },
        Answered::Refused("never".into()),
        Answered::Failed("later".into()),
    ];
    for said in fates.into_iter().map(Answered::Settled).chain(others) {
        let Crossing::Answered { number, answer } = read(&Entry::answered(9, &said)) else {
            panic!("not answered")
        };
        assert_eq!((number, answer), (9, said));
    }
    let hosts = vec![LinkedHost { name: "example.org".into(), max_stanza: 524_288 }];
    assert!(matches!(read(&Entry::hosts(&hosts)), Crossing::Hosts(read) if read == hosts));
    for host in [None, Some("example.org")] {
        let Crossing::Command { number: 9, host: of, command } =
            read(&Entry::command(9, host, b"{}"))
        else {
            panic!("no command")
        };
        assert_eq!((of.as_deref(), &*command), (host, &b"{}"[..]));
    }
    assert!(matches!(read(&Entry::reply(9, b"{}")),
        Crossing::Reply { number: 9, reply } if *reply == b"{}"[..]));
    let down = LinkId::of_peer(PEER, 3);
    assert!(matches!(read(&Entry::link_down(LINK)), Crossing::LinkDown(link) if link == down));
    assert!(matches!(read(&Entry::host_down(LINK, "h")),
        Crossing::HostDown(link, host) if link == down && &*host == "h"));
    assert!(matches!(
        read(&Entry::not_mine(ShardId(4), 5)),
        Crossing::NotMine { shard: ShardId(4), epoch: 5 }
    ));
}

#[test]
fn i7_what_no_node_writes_is_refused() {
    let input = Input::Intercept(Box::new(intercept("")));
    let body = Entry::body_of_ask(&BOB.into(), &input).unwrap();
    let whole = bytes_of(&Entry::ask(ShardId(1), 1, false, body));
    for end in 0..whole.len() {
        assert!(Crossing::read(whole.slice(..end), PEER).is_err(), "cut at {end}");
    }
    let mut longer = whole.to_vec();
    longer.push(0);
    assert!(Crossing::read(longer.into(), PEER).is_err());
}

proptest! {
    #[test]
    fn i7_hostile_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Crossing::read(bytes.into(), PEER);
    }

    /// One wrong byte in what a node writes: it is refused, or it is something else.
    #[test]
    fn i7_a_wrong_byte_does_no_harm(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let input = Input::Intercept(Box::new(intercept("")));
        let body = Entry::body_of_ask(&BOB.into(), &input).unwrap();
        let mut bytes = bytes_of(&Entry::ask(ShardId(1), 1, false, body)).to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = Crossing::read(bytes.into(), PEER);
    }
}
