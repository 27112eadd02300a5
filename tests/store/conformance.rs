//! What every store does.

use std::collections::HashMap;
use std::time::Duration;

use amphora::stanza::MessageType;
use amphora::store::{
    Amount, Detail, DuePosition, Header, NewMessage, Outcome, PageLimit, Purged, Run, StoreError,
    StoredMessage, Write,
};
use amphora::words::{Expiry, MessageId, ShardId};
use bytes::Bytes;

use crate::bed::*;

/// Makes a test of each check, over the bed that `$bed` lays.
#[macro_export]
macro_rules! conformance {
    ($bed:path: $($check:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $check() {
            $crate::conformance::$check($bed().await).await;
        })*
    };
    ($bed:path) => {
        $crate::conformance! { $bed:
            gives_back_what_it_took,
            pages_by_rows_and_bytes,
            lists_headers,
            keeps_recipients_apart,
            takes_the_longest_names,
            takes_letters_of_four_bytes,
            keeps_what_looks_alike_apart,
            a_nul_harms_nobody_else,
            stores_a_key_once,
            finds_keys_that_come_again,
            forgets_keys_after_a_while,
            removes_an_account_of_many_messages,
            keeps_the_order_of_a_recipient,
            refuses_only_the_row_that_cannot_be_stored,
            expires_in_order,
            deletes_and_counts,
            sums_up_what_is_stored,
            carries_large_jobs,
            carries_the_largest_stanzas,
            purges,
            survives_a_restart,
            takes_from_many_at_once,
            finds_a_key,
            gives_up_a_run,
            answers_after_its_end,
        }
    };
}

pub async fn gives_back_what_it_took(bed: Bed) {
    let store = bed.open().await;
    assert!(store.healthy());
    let full = NewMessage {
        recipient: bare("b\u{fc}b@example.org"),
        id: MessageId::new(7, 812),
        key: "Zk3fQ-42".into(),
        again: false,
        run: Run::new(),
        sender: "alice@example.org/\u{1f4f1} x".into(),
        kind: MessageType::Error,
        stored_at: at(-5),
        archived: true,
        expiry: Some(Expiry { at: at(99), rule: u16::MAX }),
        met_rule: Some(u16::MAX),
        stanza: Bytes::from_static("<message>\u{e4}\0</message>".as_bytes()),
    };
    let plain = NewMessage { id: MessageId::new(7, 813), ..message("b\u{fc}b@example.org", 1) };
    let outcomes =
        run(&*store, vec![Write::Append(full.clone()), Write::Append(plain.clone())]).await;
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Stored]);
    let expected = [full, plain].map(|message| StoredMessage {
        id: message.id,
        key: message.key,
        sender: message.sender,
        kind: message.kind,
        stored_at: message.stored_at,
        archived: message.archived,
        expiry: message.expiry,
        met_rule: message.met_rule,
        stanza: message.stanza,
    });
    assert_eq!(page(&*store, "b\u{fc}b@example.org", 0).await, expected);
    for kind in [
        MessageType::Normal,
        MessageType::Chat,
        MessageType::Groupchat,
        MessageType::Headline,
        MessageType::Error,
    ] {
        let of_kind = NewMessage { kind, ..message("kinds", kind as i64 + 1) };
        assert_eq!(run(&*store, vec![Write::Append(of_kind)]).await, [Outcome::Stored]);
        assert_eq!(page(&*store, "kinds", kind as i64).await[0].kind, kind);
    }
    assert_eq!(run(&*store, vec![]).await, []);
    store.close().await;
}

pub async fn pages_by_rows_and_bytes(bed: Bed) {
    let store = bed.open().await;
    let sized = |id, size| {
        Write::Append(NewMessage { stanza: vec![b'x'; size].into(), ..message("bob", id) })
    };
    let writes = vec![sized(1, 70_000), sized(2, 10), sized(3, 10), sized(4, 11), sized(9, 0)];
    run(&*store, writes).await;
    let ids = async |after, rows, bytes| {
        let limit = PageLimit { rows, bytes };
        let page = store.page(bare("bob"), MessageId(after), limit).await.unwrap();
        page.iter().map(|message| message.id.0).collect::<Vec<_>>()
    };
    assert_eq!(ids(0, 0, 0).await, [1]);
    assert_eq!(ids(0, 10, 70_010).await, [1, 2]);
    assert_eq!(ids(1, 10, 20).await, [2, 3]);
    assert_eq!(ids(1, 10, 19).await, [2]);
    assert_eq!(ids(1, 2, 1000).await, [2, 3]);
    assert_eq!(ids(3, usize::MAX, usize::MAX).await, [4, 9]);
    assert!(ids(9, 10, 10).await.is_empty());
    store.close().await;
}

pub async fn lists_headers(bed: Bed) {
    let store = bed.open().await;
    let header = |n: i64| Header {
        id: MessageId(n),
        sender: "alice@example.org/desk".into(),
        expires_at: (n == 2).then(|| at(99)),
    };
    let expiring = NewMessage {
        expiry: Some(Expiry { at: at(99), rule: 3 }),
        ..message("bob@example.org", 2)
    };
    let of_carol = Write::Append(message("carol@example.org", 2));
    run(&*store, vec![append("bob@example.org", 1), Write::Append(expiring), of_carol]).await;
    run(&*store, vec![append("bob@example.org", 5)]).await;
    let headers = async |after: i64, rows: usize| {
        let headers = store.headers(bare("bob@example.org"), MessageId(after), rows).await;
        headers.expect("reads")
    };
    assert_eq!(headers(0, 100).await, [header(1), header(2), header(5)]);
    assert_eq!(headers(-1, 2).await, [header(1), header(2)]);
    assert_eq!(headers(2, 100).await, [header(5)]);
    assert_eq!(headers(2, 0).await, [header(5)], "at least one");
    assert_eq!(headers(5, 100).await, []);
    let gone = Write::Delete { recipient: bare("bob@example.org"), ids: vec![MessageId(2)] };
    run(&*store, vec![gone]).await;
    assert_eq!(headers(0, 100).await, [header(1), header(5)]);
    store.close().await;
    let closed = store.headers(bare("bob@example.org"), MessageId::ZERO, 1).await;
    assert!(matches!(closed, Err(StoreError::Closed)), "{closed:?}");
}

pub async fn keeps_recipients_apart(bed: Bed) {
    let store = bed.open().await;
    let long = "x".repeat(2047);
    let names =
        ["bob@example.org", "Bob@example.org", "bob@example.org ", "b\u{f6}b", "bo\u{308}b", &long];
    let writes = names.iter().map(|name| {
        Write::Append(NewMessage {
            key: format!("k{name}")[..name.len().min(200)].into(),
            ..message(name, 1)
        })
    });
    let outcomes = run(&*store, writes.collect()).await;
    assert_eq!(outcomes, vec![Outcome::Stored; names.len()]);
    for name in names {
        assert_eq!(count(&*store, bare(name)).await, 1, "{name}");
        assert_eq!(ids(&*store, name).await, [1], "{name}");
    }
    assert_eq!(count(&*store, bare("bob")).await, 0);
    store.close().await;
}

/// RFC 7622, section 3.1: 1,023 bytes a part. The same lengths in letters of each size.
pub async fn takes_the_longest_names(bed: Bed) {
    let store = bed.open().await;
    let filled = |letter: &str, bytes: usize, end: &str| {
        let mut text = letter.repeat((bytes - end.len()) / letter.len());
        text.push_str(&"x".repeat(bytes - end.len() - text.len()));
        text + end
    };
    let names: Vec<(String, String)> = ["y", "\u{e9}", "\u{3042}", "\u{1f600}"]
        .iter()
        .flat_map(|letter| {
            ["1", "2"].map(|end| (filled(letter, 2047, end), filled(letter, 3071, end)))
        })
        .collect();
    let expiry = Some(Expiry { at: at(70), rule: 1 });
    let long = |(recipient, sender): &(String, String), id: i64| NewMessage {
        sender: sender.clone(),
        // The ends differ: nothing is cut off.
        key: filled(
            "\u{1f600}",
            255,
            &format!("{}-{id}-{}", &recipient[2046..], sender.chars().next().map_or(0, u32::from)),
        )
        .into(),
        expiry,
        ..message(recipient, id)
    };
    let writes: Vec<Write> =
        names.iter().flat_map(|name| [1, 2].map(|id| Write::Append(long(name, id)))).collect();
    assert_eq!(run(&*store, writes.clone()).await, vec![Outcome::Stored; 16]);
    for write in &writes {
        let Write::Append(message) = write else { unreachable!("all are") };
        assert_eq!(
            (message.recipient.len(), message.sender.len(), message.key.len()),
            (2047, 3071, 255)
        );
        let found = store.find(message.recipient.clone(), message.key.clone()).await.unwrap();
        assert_eq!(found, Some(None));
    }
    for (recipient, sender) in &names {
        let rows = page(&*store, recipient, 0).await;
        assert!(rows.len() == 2 && rows.iter().all(|row| row.sender == *sender));
        let headers = store.headers(bare(recipient), MessageId::ZERO, 9).await.unwrap();
        assert!(headers.len() == 2 && headers[1].sender == *sender);
        let usage = store.usage(bare(recipient), Detail::Senders).await.unwrap();
        assert_eq!((usage.all.messages, usage.senders.len()), (2, 1));
    }
    // All expire at one moment, so that the recipient decides the order.
    let mut from = DuePosition::start();
    let mut due = Vec::new();
    while let Some(last) = {
        let limit = PageLimit { rows: 3, bytes: 1 << 20 };
        let some = store.due(from.clone(), at(70), limit).await.unwrap();
        due.extend(some.iter().map(|due| (due.recipient.clone(), due.message.id.0)));
        some.last().map(|due| due.position())
    } {
        from = last;
    }
    let mut expected: Vec<_> =
        names.iter().flat_map(|name| [1, 2].map(|id| (bare(&name.0), id))).collect();
    expected.sort();
    assert_eq!(due, expected);
    for (recipient, _) in &names {
        assert_eq!(
            run(&*store, vec![delete(recipient, &[1]), remove(recipient)]).await,
            [done(1), done(1)]
        );
    }
    store.close().await;
}

pub async fn takes_letters_of_four_bytes(bed: Bed) {
    let store = bed.open().await;
    let face = |n: u32| char::from_u32(0x1f600 + n).expect("a letter").to_string();
    let of = |n: u32| NewMessage {
        key: format!("k-{}", face(n)).into(),
        sender: format!("{0}@example.org/{0}", face(n)),
        stanza: format!("<message><body>{}</body></message>", face(n)).into(),
        ..message(&format!("{}@example.org", face(n % 4)), i64::from(n) + 1)
    };
    let outcomes = run(&*store, (0..40).map(|n| Write::Append(of(n))).collect()).await;
    assert_eq!(outcomes, vec![Outcome::Stored; 40]);
    for n in 0..4 {
        let rows = page(&*store, &format!("{}@example.org", face(n)), 0).await;
        let seen: Vec<_> = rows.iter().map(|row| (&*row.key, &*row.sender, &row.stanza)).collect();
        let expected: Vec<_> = (n..40).step_by(4).map(of).collect();
        let expected: Vec<_> = expected.iter().map(|m| (&*m.key, &*m.sender, &m.stanza)).collect();
        assert_eq!(seen, expected);
    }
    let again = NewMessage { again: true, ..of(7) };
    assert_eq!(run(&*store, vec![Write::Append(again)]).await, [already()]);
    store.close().await;
}

/// Texts that a collation of some database takes for one: as recipients, keys and senders.
pub async fn keeps_what_looks_alike_apart(bed: Bed) {
    let store = bed.open().await;
    let alike = [
        "bob",
        "Bob",
        "BOB",
        "bob ",
        "bob  ",
        " bob",
        "bob\t",
        "b\u{f6}b",
        "bo\u{308}b",
        "b\u{d6}b",
        "bob\u{a0}",
        "bob\u{200b}",
        "b\u{43e}b",
        "stra\u{df}e",
        "strasse",
        "\u{212b}",
        "\u{c5}",
        "A\u{30a}",
        "\u{1f600}",
        "\u{1f601}",
        "\u{131}",
        "i",
        "I",
        "\u{130}",
        "\u{fb01}",
        "fi",
        "b%b",
        "b_b",
        "b\\b",
        "b'b",
    ];
    let writes: Vec<Write> = alike
        .iter()
        .map(|name| {
            let sender = (*name).to_owned();
            Write::Append(NewMessage { key: (*name).into(), sender, ..message(name, 1) })
        })
        .chain(alike.iter().zip(2..).map(|(name, id)| {
            let key = format!("all-{name}").into();
            Write::Append(NewMessage { key, sender: (*name).to_owned(), ..message("all", id) })
        }))
        .collect();
    assert_eq!(run(&*store, writes).await, vec![Outcome::Stored; 2 * alike.len()]);
    let usage = store.usage(bare("all"), Detail::Senders).await.unwrap();
    for name in alike {
        let rows = page(&*store, name, 0).await;
        assert!(
            rows.len() == 1 && rows[0].sender == name && *rows[0].key == *name,
            "{name:?}: {rows:?}"
        );
        assert_eq!(store.find(bare(name), name.into()).await.unwrap(), Some(None), "{name:?}");
        assert_eq!(usage.senders[&bare(name)].messages, 1, "{name:?}");
        assert_eq!(run(&*store, vec![delete(name, &[1])]).await, [done(1)], "{name:?}");
    }
    // The marks are as different as the keys were.
    let again = alike.iter().map(|name| {
        Write::Append(NewMessage { again: true, key: (*name).into(), ..message(name, 9) })
    });
    assert_eq!(run(&*store, again.collect()).await, vec![already(); alike.len()]);
    assert_eq!(run(&*store, vec![again_of("bob   ")]).await, [Outcome::Stored]);
    store.close().await;
}

fn again_of(name: &str) -> Write {
    again(name, 9, name)
}

/// No XML has one; PostgreSQL takes none in a text. It is refused alone, or kept as it is.
pub async fn a_nul_harms_nobody_else(bed: Bed) {
    let store = bed.open().await;
    let mut writes: Vec<Write> = (1..=40).map(|id| append("bob", id)).collect();
    writes[10] = Write::Append(NewMessage { key: "in\0key".into(), ..message("bob", 11) });
    writes[20] = Write::Append(NewMessage { sender: "in\0sender".into(), ..message("bob", 21) });
    writes[30] = append("in\0recipient", 31);
    let outcomes = run(&*store, writes).await;
    for (place, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Stored => {}
            Outcome::Refused(_) => assert!([10, 20, 30].contains(&place), "{place}"),
            other => panic!("{place}: {other:?}"),
        }
    }
    assert!(store.healthy());
    let kept = page(&*store, "bob", 0).await;
    let refused = |place: usize| usize::from(outcomes[place] != Outcome::Stored);
    assert_eq!(kept.len(), 39 - refused(10) - refused(20));
    assert!(kept.iter().all(|row| row.id.0 != 21 || row.sender == "in\0sender"));
    // Whatever is asked of such a one later.
    assert!(
        run(&*store, vec![delete("in\0recipient", &[31]), append("bob", 99)]).await[1]
            == Outcome::Stored
    );
    store.close().await;
}

pub async fn stores_a_key_once(bed: Bed) {
    let store = bed.open().await;
    let with_key = |id, key: &str, met_rule| {
        Write::Append(NewMessage { key: key.into(), met_rule, ..message("bob", id) })
    };
    let outcomes = run(
        &*store,
        vec![
            with_key(1, "a", Some(3)),
            with_key(2, "b", None),
            with_key(3, "a", None),
            again("bob", 4, "a"),
            with_key(5, "A", None),
        ],
    )
    .await;
    let first = Outcome::Already { met_rule: Some(3) };
    assert_eq!(
        outcomes,
        [Outcome::Stored, Outcome::Stored, first.clone(), first.clone(), Outcome::Stored]
    );
    let outcomes = run(&*store, vec![with_key(6, "b", Some(1)), with_key(7, "c", None)]).await;
    assert_eq!(outcomes, [already(), Outcome::Stored]);
    assert_eq!(ids(&*store, "bob").await, [1, 2, 5, 7]);
    // The very same row once more.
    assert_ne!(run(&*store, vec![with_key(1, "a", Some(3))]).await, [Outcome::Retry]);
    assert_eq!(ids(&*store, "bob").await, [1, 2, 5, 7]);
    store.close().await;
}

pub async fn finds_keys_that_come_again(bed: Bed) {
    let store = bed.open().await;
    let first = NewMessage { key: "k".into(), met_rule: Some(2), ..message("bob", 1) };
    run(&*store, vec![Write::Append(first)]).await;
    let met = Outcome::Already { met_rule: Some(2) };
    assert_eq!(run(&*store, vec![again("bob", 2, "k")]).await, std::slice::from_ref(&met));
    assert_eq!(run(&*store, vec![delete("bob", &[1])]).await, [done(1)]);
    assert_eq!(run(&*store, vec![again("bob", 3, "k")]).await, std::slice::from_ref(&met));
    // Whoever is sure that it is new is believed.
    let anew = NewMessage { key: "k".into(), ..message("bob", 4) };
    assert_eq!(run(&*store, vec![Write::Append(anew)]).await, [Outcome::Stored]);
    assert_eq!(run(&*store, vec![again("bob", 5, "k")]).await, [already()]);
    assert_eq!(run(&*store, vec![delete("bob", &[4])]).await, [done(1)]);
    assert_eq!(run(&*store, vec![again("bob", 6, "k")]).await, [already()]);
    assert_eq!(run(&*store, vec![again("bob", 7, "new")]).await, [Outcome::Stored]);
    assert_eq!(
        run(&*store, vec![again("bob", 8, "new"), again("bob", 9, "newer")]).await,
        [already(), Outcome::Stored]
    );
    assert_eq!(count(&*store, bare("bob")).await, 2);
    store.close().await;
}

pub async fn forgets_keys_after_a_while(bed: Bed) {
    let store = bed.open().await;
    let memory = bed.settings.memory_of_keys;
    run(&*store, vec![append("bob", 1), append("bob", 2), append("bob", 3)]).await;
    bed.clock.pass(memory - Duration::from_secs(1));
    run(&*store, vec![delete("bob", &[1])]).await;
    bed.clock.pass(Duration::from_secs(1));
    // Too old for a mark.
    run(&*store, vec![delete("bob", &[2])]).await;
    // Its mark is over by now, but nobody has removed it.
    let purged = store.purge(None, bed.clock.now()).await.unwrap();
    assert_eq!(purged, Purged { messages: 0, marks: 0 });
    assert_eq!(
        run(&*store, vec![again("bob", 11, "bob-1"), again("bob", 12, "bob-2")]).await,
        [already(), Outcome::Stored]
    );
    bed.clock.pass(Duration::from_secs(1));
    let purged = store.purge(None, bed.clock.now()).await.unwrap();
    assert_eq!(purged, Purged { messages: 0, marks: 1 });
    assert_eq!(run(&*store, vec![again("bob", 13, "bob-1")]).await, [Outcome::Stored]);
    // An account that is removed leaves no marks.
    assert_eq!(run(&*store, vec![remove("bob")]).await, [done(3)]);
    assert_eq!(run(&*store, vec![again("bob", 14, "bob-1")]).await, [Outcome::Stored]);
    store.close().await;
}

/// In several transactions: what waits for others comes in between, what waits for the recipient after
/// them.
pub async fn removes_an_account_of_many_messages(bed: Bed) {
    const MANY: i64 = 2_500;
    let store = bed.open().await;
    run(&*store, (1..=MANY).map(|id| append("bob", id)).collect()).await;
    run(&*store, vec![append("eve", 1)]).await;
    let told = [
        vec![remove("bob")],
        vec![append("bob", MANY + 1), append("eve", 2)],
        vec![remove("bob")],
        vec![append("bob", MANY + 2)],
        vec![remove("eve"), append("eve", 3)],
    ]
    .map(|writes| submit(&*store, writes));
    let expected = [
        vec![done(MANY as u64)],
        vec![Outcome::Stored, Outcome::Stored],
        vec![done(1)],
        vec![Outcome::Stored],
        vec![done(2), Outcome::Stored],
    ];
    for (told, expected) in told.into_iter().zip(expected) {
        assert_eq!(told.await.unwrap(), expected);
    }
    assert_eq!(ids(&*store, "bob").await, [MANY + 2]);
    assert_eq!(ids(&*store, "eve").await, [3]);
    // It leaves no marks.
    assert_eq!(run(&*store, vec![again("bob", MANY + 3, "bob-1")]).await, [Outcome::Stored]);
    store.close().await;
}

pub async fn keeps_the_order_of_a_recipient(bed: Bed) {
    let store = bed.open().await;
    let outcomes = run(
        &*store,
        vec![
            append("bob", 1),
            append("eve", 1),
            delete("bob", &[1]),
            again("bob", 2, "bob-1"),
            append("bob", 3),
            remove("bob"),
            delete("bob", &[3]),
            append("bob", 4),
            delete("eve", &[2]),
            append("eve", 2),
            Write::SetExpiry {
                recipient: bare("bob"),
                id: MessageId(4),
                expiry: Some(Expiry { at: at(5), rule: 1 }),
            },
            Write::SetExpiry { recipient: bare("bob"), id: MessageId(5), expiry: None },
            append("bob", 5),
        ],
    )
    .await;
    let stored = || Outcome::Stored;
    assert_eq!(
        outcomes,
        [
            stored(),
            stored(),
            done(1),
            already(),
            stored(),
            done(1),
            done(0),
            stored(),
            done(0),
            stored(),
            done(1),
            done(0),
            stored(),
        ]
    );
    assert_eq!(ids(&*store, "bob").await, [4, 5]);
    assert_eq!(ids(&*store, "eve").await, [1, 2]);
    // The same over many jobs of one moment.
    let mut told = Vec::new();
    for id in 100..200 {
        told.push((submit(&*store, vec![append("zoe", id)]), Outcome::Stored));
        told.push((submit(&*store, vec![delete("zoe", &[id])]), done(1)));
        told.push((submit(&*store, vec![delete("zoe", &[id])]), done(0)));
    }
    for (told, expected) in told {
        assert_eq!(told.await.unwrap(), [expected]);
    }
    assert_eq!(count(&*store, bare("zoe")).await, 0);
    store.close().await;
}

pub async fn refuses_only_the_row_that_cannot_be_stored(bed: Bed) {
    let store = bed.open().await;
    run(&*store, vec![append("bob", 500)]).await;
    let mut writes: Vec<Write> = (1..1000).map(|id| append("bob", id)).collect();
    writes[499] = Write::Append(NewMessage { key: "other".into(), ..message("bob", 500) });
    writes[700] = append(&"x".repeat(2048), 1);
    writes[701] = Write::Append(NewMessage { sender: "x".repeat(3072), ..message("bob", 5000) });
    writes[702] = Write::Append(NewMessage { key: "x".repeat(256).into(), ..message("bob", 5001) });
    let refused = [499, 700, 701, 702];
    for (place, outcome) in run(&*store, writes).await.into_iter().enumerate() {
        match outcome {
            Outcome::Refused(reason) => {
                assert!(refused.contains(&place) && !reason.is_empty(), "{place}");
            }
            Outcome::Stored => assert!(!refused.contains(&place), "{place}"),
            other => panic!("{place}: {other:?}"),
        }
    }
    assert_eq!(count(&*store, bare("bob")).await, 996);
    assert!(store.healthy());
    store.close().await;
}

pub async fn expires_in_order(bed: Bed) {
    let store = bed.open().await;
    let expiring = |recipient: &str, id, second| {
        let expiry = Some(Expiry { at: at(second), rule: id as u16 });
        Write::Append(NewMessage { expiry, ..message(recipient, id) })
    };
    assert_eq!(store.next_due(DuePosition::start()).await.unwrap(), None);
    run(
        &*store,
        vec![
            expiring("bob", 1, 30),
            expiring("bob", 2, 10),
            expiring("ann", 9, 30),
            append("ann", 10),
            expiring("zoe", 1, 10),
            expiring("zoe", 2, 40),
        ],
    )
    .await;
    let due = async |from: DuePosition, until, rows, bytes| {
        let due = store.due(from, at(until), PageLimit { rows, bytes }).await.unwrap();
        let named = due.iter().map(|due| (due.recipient.to_string(), due.expiry.rule));
        (named.collect::<Vec<_>>(), due.last().map(|due| due.position()))
    };
    let named = |names: &[(&str, u16)]| {
        names.iter().map(|(name, rule)| ((*name).to_owned(), *rule)).collect::<Vec<_>>()
    };
    let start = DuePosition::start;
    assert_eq!(due(start(), 9, 10, 1000).await.0, []);
    assert_eq!(store.next_due(start()).await.unwrap(), Some(at(10)));
    let (first, place) = due(start(), 30, 3, 1000).await;
    assert_eq!(first, named(&[("bob", 2), ("zoe", 1), ("ann", 9)]));
    let place = place.unwrap();
    assert_eq!(store.next_due(place.clone()).await.unwrap(), Some(at(30)));
    assert_eq!(due(place, 30, 3, 1000).await.0, named(&[("bob", 1)]));
    assert_eq!(due(start(), 30, 3, 0).await.0, named(&[("bob", 2)]));
    assert_eq!(due(start(), 100, 100, 1000).await.0.len(), 5);
    assert_eq!(due(DuePosition::before(at(30)), 100, 100, 1000).await.0.len(), 3);
    assert_eq!(store.next_due(DuePosition::before(at(31))).await.unwrap(), Some(at(40)));

    let set = |id, second: Option<i64>| Write::SetExpiry {
        recipient: bare("bob"),
        id: MessageId(id),
        expiry: second.map(|second| Expiry { at: at(second), rule: 7 }),
    };
    let outcomes =
        run(&*store, vec![set(2, Some(50)), set(1, None), delete("zoe", &[1, 2]), set(3, None)])
            .await;
    assert_eq!(outcomes, [done(1), done(1), done(2), done(0)]);
    assert_eq!(due(start(), 100, 9, 1000).await.0, named(&[("ann", 9), ("bob", 7)]));
    assert_eq!(page(&*store, "bob", 0).await[0].expiry, None);
    assert_eq!(page(&*store, "bob", 1).await[0].expiry, Some(Expiry { at: at(50), rule: 7 }));
    run(&*store, vec![remove("ann"), remove("bob")]).await;
    assert_eq!(store.next_due(start()).await.unwrap(), None);
    store.close().await;
}

pub async fn deletes_and_counts(bed: Bed) {
    let store = bed.open().await;
    run(&*store, (1..=700).map(|id| append("bob", id)).collect()).await;
    run(&*store, vec![append("eve", 1)]).await;
    let some: Vec<i64> = (1..=600).filter(|id| id % 2 == 0).collect();
    let outcomes = run(
        &*store,
        vec![
            delete("bob", &some),
            delete("eve", &[2, 3]),
            delete("bob", &[]),
            delete("bob", &[2, 699, 9999]),
            delete("nobody", &[1]),
        ],
    )
    .await;
    assert_eq!(outcomes, [done(300), done(0), done(0), done(1), done(0)]);
    assert_eq!(count(&*store, bare("bob")).await, 399);
    assert_eq!(run(&*store, vec![remove("bob"), remove("nobody")]).await, [done(399), done(0)]);
    assert_eq!(count(&*store, bare("bob")).await, 0);
    assert_eq!(ids(&*store, "eve").await, [1]);
    store.close().await;
}

pub async fn sums_up_what_is_stored(bed: Bed) {
    let store = bed.open().await;
    let from = |sender: &str, id, bytes| {
        let stanza = vec![b' '; bytes].into();
        Write::Append(NewMessage { sender: sender.to_owned(), stanza, ..message("bob", id) })
    };
    let writes = vec![
        from("alice@h/desk", 1, 10),
        from("alice@h/a/b", 2, 200),
        from("eve@h", 3, 3000),
        from("h", 4, 0),
        append("alice@h", 5),
    ];
    run(&*store, writes).await;
    let all = Amount { messages: 4, bytes: 3210 };
    let senders: HashMap<_, _> = [("alice@h", 2, 210), ("eve@h", 1, 3000), ("h", 1, 0)]
        .map(|(sender, messages, bytes)| (bare(sender), Amount { messages, bytes }))
        .into();
    for (detail, expected, by_sender) in [
        (Detail::Messages, Amount { bytes: 0, ..all }, HashMap::new()),
        (Detail::Bytes, all, HashMap::new()),
        (Detail::Senders, all, senders),
    ] {
        let usage = store.usage(bare("bob"), detail).await.unwrap();
        assert_eq!((usage.all, usage.senders), (expected, by_sender), "{detail:?}");
        let nothing = store.usage(bare("nobody"), detail).await.unwrap();
        assert_eq!((nothing.all, nothing.senders.len()), (Amount::default(), 0), "{detail:?}");
    }
    store.close().await;
}

pub async fn carries_large_jobs(bed: Bed) {
    let store = bed.open().await;
    // More than a transaction takes, and more than the queue does.
    let outcomes = run(&*store, (1..=20_000).map(|id| append("bob", id)).collect()).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored));
    let large = (1..=20).map(|id| {
        Write::Append(NewMessage { stanza: vec![b'x'; 1 << 20].into(), ..message("eve", id) })
    });
    assert_eq!(run(&*store, large.collect()).await, vec![Outcome::Stored; 20]);
    let all: Vec<i64> = (1..=20_000).collect();
    assert_eq!(run(&*store, vec![delete("bob", &all)]).await, [done(20_000)]);
    store.close().await;
}

/// As large as the largest servers take, of all bytes, more at once than a packet of MySQL may
/// have; read page by page, as they are handed over.
pub async fn carries_the_largest_stanzas(bed: Bed) {
    const SIZE: usize = 512 * 1024;
    let store = bed.open().await;
    let stanza = |id: i64| -> Bytes {
        let mut x = id as u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        };
        (0..SIZE).map(|_| next()).collect::<Vec<u8>>().into()
    };
    let large = |id| Write::Append(NewMessage { stanza: stanza(id), ..message("bob", id) });
    let mut writes: Vec<Write> = (1..=48).map(large).collect();
    writes.push(append("eve", 1));
    assert_eq!(run(&*store, writes).await, vec![Outcome::Stored; 49]);
    let usage = store.usage(bare("bob"), Detail::Bytes).await.unwrap();
    assert_eq!(usage.all, Amount { messages: 48, bytes: 48 * SIZE as u64 });
    let mut after = MessageId::ZERO;
    let mut seen = 0;
    loop {
        let limit = PageLimit { rows: 50, bytes: 3 * SIZE };
        let rows = store.page(bare("bob"), after, limit).await.unwrap();
        let Some(last) = rows.last() else { break };
        assert!(rows.len() <= 3);
        after = last.id;
        for row in rows {
            seen += 1;
            assert!(row.id.0 == seen && row.stanza == stanza(seen), "{seen}");
        }
    }
    assert_eq!(seen, 48);
    let all: Vec<i64> = (1..=48).collect();
    assert_eq!(run(&*store, vec![delete("bob", &all)]).await, [done(48)]);
    store.close().await;
}

pub async fn purges(bed: Bed) {
    let store = bed.open().await;
    let aged = |recipient: &str, id, second| {
        Write::Append(NewMessage { stored_at: at(second), ..message(recipient, id) })
    };
    let names: Vec<String> = (0..50).map(|n| format!("user{n}")).collect();
    let writes = names.iter().flat_map(|name| (1..=30).map(|id| aged(name, id, id)));
    run(&*store, writes.collect()).await;
    let purged = store.purge(Some(at(21)), bed.clock.now()).await.unwrap();
    assert_eq!(purged, Purged { messages: 1000, marks: 0 });
    for name in &names {
        assert_eq!(ids(&*store, name).await, (21..=30).collect::<Vec<_>>());
    }
    // They were appended just now: their keys are remembered.
    assert_eq!(run(&*store, vec![again("user0", 99, "user0-1")]).await, [already()]);
    bed.clock.pass(bed.settings.memory_of_keys + Duration::from_secs(1));
    let purged = store.purge(None, bed.clock.now()).await.unwrap();
    assert_eq!(purged, Purged { messages: 0, marks: 1000 });
    store.close().await;
}

pub async fn survives_a_restart(bed: Bed) {
    let mut last = 0;
    for start in 1..=3 {
        let store = bed.open().await;
        assert!(store.epoch(ShardId(0)) > last && store.epoch(ShardId(0)) <= MessageId::MAX_EPOCH);
        last = store.epoch(ShardId(0));
        assert_eq!(count(&*store, bare("bob")).await, start - 1);
        let id = MessageId::new(store.epoch(ShardId(0)), 0);
        let message = NewMessage { id, ..message("bob", last.into()) };
        // Not waited for: a store that closes finishes what it has.
        let told = submit(&*store, vec![Write::Append(message)]);
        store.close().await;
        assert_eq!(told.await.unwrap(), [Outcome::Stored]);
    }
    let store = bed.open().await;
    let ids = ids(&*store, "bob").await;
    assert!(ids.len() == 3 && ids.is_sorted());
    assert_eq!(run(&*store, vec![again("bob", 1, "bob-1")]).await, [already()]);
    store.close().await;
}

pub async fn takes_from_many_at_once(bed: Bed) {
    const THREADS: i64 = 8;
    const EACH: i64 = 300;
    let store = bed.open().await;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = &*store;
            scope.spawn(move || {
                let told: Vec<_> = (0..EACH)
                    .map(|n| {
                        let own = format!("user{thread}");
                        let shared = NewMessage {
                            key: format!("shared-{n}").into(),
                            ..message("shared", n * THREADS + thread + 1)
                        };
                        submit(store, vec![append(&own, n + 1), Write::Append(shared)])
                    })
                    .collect();
                for told in told {
                    let outcomes = told.blocking_recv().unwrap();
                    assert_eq!(outcomes[0], Outcome::Stored);
                    assert!(matches!(outcomes[1], Outcome::Stored | Outcome::Already { .. }));
                }
            });
        }
    });
    for thread in 0..THREADS {
        let ids = ids(&*store, &format!("user{thread}")).await;
        assert_eq!(ids, (1..=EACH).collect::<Vec<_>>());
    }
    // Each key once, whoever came first.
    assert_eq!(count(&*store, bare("shared")).await, EACH as u64);
    store.close().await;
}

pub async fn finds_a_key(bed: Bed) {
    let store = bed.open().await;
    let met = |id, met_rule| Write::Append(NewMessage { met_rule, ..message("bob", id) });
    run(&*store, vec![met(1, Some(4)), met(2, None)]).await;
    let find = async |key: &str| store.find(bare("bob"), key.into()).await.unwrap();
    assert_eq!(find("bob-1").await, Some(Some(4)));
    assert_eq!(find("bob-2").await, Some(None));
    assert_eq!(find("bob-3").await, None);
    run(&*store, vec![delete("bob", &[1, 2])]).await;
    assert_eq!(find("bob-1").await, Some(Some(4)));
    assert_eq!(find("bob-2").await, Some(None));
    store.close().await;
}

pub async fn gives_up_a_run(bed: Bed) {
    let store = bed.open().await;
    let shared = Run::new();
    let of_run = |id| Write::Append(NewMessage { run: shared.clone(), ..message("bob", id) });
    assert_eq!(run(&*store, vec![of_run(1)]).await, [Outcome::Stored]);
    assert!(!shared.is_given_up());
    shared.give_up();
    assert_eq!(
        run(&*store, vec![of_run(2), append("bob", 3)]).await,
        [Outcome::Retry, Outcome::Stored]
    );
    assert_eq!(ids(&*store, "bob").await, [1, 3]);
    store.close().await;
}

pub async fn answers_after_its_end(bed: Bed) {
    let store = bed.open().await;
    store.close().await;
    store.close().await;
    let message = message("bob", 1);
    let run_of_it = message.run.clone();
    let outcomes = run(&*store, vec![Write::Append(message), delete("bob", &[1])]).await;
    assert_eq!(outcomes, [Outcome::Retry, Outcome::Retry]);
    assert!(run_of_it.is_given_up());
    let read = store.page(bare("bob"), MessageId::ZERO, ALL).await;
    assert!(matches!(read, Err(StoreError::Closed)), "{read:?}");
    let read = store.usage(bare("bob"), Detail::Messages).await;
    assert!(matches!(read, Err(StoreError::Closed)), "{read:?}");
    let purged = store.purge(None, at(0)).await;
    assert!(matches!(purged, Err(StoreError::Closed)), "{purged:?}");
    assert!(!store.healthy());
}
