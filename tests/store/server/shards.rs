//! Shards move between nodes that share a database.

use std::sync::Arc;

use amphora::store::{
    Detail, DuePosition, Incarnation, MoveError, NewMessage, Outcome, Run, SeaStore, Store,
    StoreError, StoreSettings, Write,
};
use amphora::words::{Expiry, MessageId, ShardId};
use tokio::time::Duration;

use super::load::*;
use super::proxy::{Fate, Proxy};
use super::{Kind, ServerBed, TestServer, execute, on_each_server, value};
use crate::bed::*;

on_each_server!(
    shards_are_taken_and_given,
    nothing_of_a_shard_is_read_that_was_given_away,
    a_shard_that_went_and_came_back_is_not_the_same,
    what_waits_for_a_shard_that_moves_is_tried_elsewhere,
    a_batch_of_which_a_part_has_moved,
    of_two_who_take_the_same_one_gets_it,
    a_take_of_what_is_not_as_it_was_seen_changes_nothing,
    a_node_whose_shards_are_taken_is_fenced,
    a_fenced_node_is_given_nothing,
    a_successor_has_the_shards_of_the_one_before,
    epochs_only_grow,
    moves_under_load_lose_and_double_nothing,
    the_unknown_outcome_of_a_move,
    a_node_that_stands_still_within_a_move_is_in_nobodys_way,
    what_is_due_is_found_by_its_owner,
    old_messages_are_removed_by_their_owner,
    the_last_epoch_moves_nothing,
    a_run_that_met_a_move_is_given_up,
    of_those_who_start_at_once_each_has_a_number_of_its_own,
);

fn id(store: &SeaStore, shard: u32, n: u64) -> i64 {
    MessageId::new(store.epoch(ShardId(shard)), n).0
}

fn me(store: &SeaStore) -> Incarnation {
    store.incarnation().expect("in a server")
}

fn some(shards: impl IntoIterator<Item = u32>) -> Vec<ShardId> {
    shards.into_iter().map(ShardId).collect()
}

/// Two nodes, each with half of the shards: 0 to 3, and 4 to 7.
async fn two(at: &ServerBed) -> (Arc<SeaStore>, Arc<SeaStore>) {
    let (a, b) = (node(at, "a").await, node(at, "b").await);
    take(&a, 0..4).await;
    take(&b, 4..8).await;
    (a, b)
}

async fn shards_are_taken_and_given(at: ServerBed) {
    let a = node(&at, "a").await;
    let users: Vec<String> = (0..SHARDS).map(user_of).collect();
    // It has none: it stores nothing, and reads nothing.
    assert_eq!(a.epoch(ShardId(0)), 0);
    assert_eq!(run(&*a, vec![append(&users[0], 1)]).await, [Outcome::NotMine]);
    let read = a.page(bare(&users[0]), MessageId::ZERO, ALL).await;
    assert!(matches!(read, Err(StoreError::NotMine)), "{read:?}");
    let seen = a.ownership().await.unwrap();
    assert_eq!(seen.shards.len(), SHARDS as usize);
    assert!(seen.shards.iter().all(|one| one.owner.is_none() && one.epoch > 0));
    assert!(seen.members.len() == 1 && seen.members[0].incarnation == me(&a));

    let b = node(&at, "b").await;
    take(&a, 0..4).await;
    take(&b, 4..8).await;
    let first = id(&a, 0, 1);
    let outcomes = run(&*a, vec![append(&users[0], first), append(&users[4], 1)]).await;
    assert_eq!(outcomes, [Outcome::Stored, Outcome::NotMine]);
    assert_eq!(
        run(&*b, vec![append(&users[4], id(&b, 4, 1)), append(&users[0], 1)]).await,
        [Outcome::Stored, Outcome::NotMine]
    );

    a.give(some([0, 1]), me(&b)).await.unwrap();
    let seen = b.ownership().await.unwrap();
    for one in &seen.shards {
        let owner = if one.shard.0 < 2 || one.shard.0 >= 4 { &b } else { &a };
        assert_eq!(one.owner.as_ref(), Some(&me(owner)));
        assert_eq!(owner.epoch(one.shard), one.epoch);
    }
    assert!(seen.members.iter().all(|member| !member.fenced));
    assert!(seen.members.iter().all(|member| member.unseen < Duration::from_secs(600)));
    assert_eq!(a.epoch(ShardId(0)), 0);
    let second = id(&b, 0, 1);
    assert!(second > first);
    assert_eq!(run(&*b, vec![append(&users[0], second)]).await, [Outcome::Stored]);
    assert_eq!(ids(&*b, &users[0]).await, [first, second]);
    let outcomes = run(&*a, vec![delete(&users[0], &[first]), append(&users[2], 1)]).await;
    assert_eq!(outcomes, [Outcome::NotMine, Outcome::Stored]);
    assert!(a.healthy() && b.healthy());

    // What can't be given, or was given before.
    let again = a.give(some([0]), me(&b)).await;
    assert!(matches!(again, Err(MoveError::Changed)), "{again:?}");
    assert_eq!(run(&*a, vec![append(&users[3], 1)]).await, [Outcome::Stored]);
    a.close().await;
    let closed = a.give(some([2]), me(&b)).await;
    assert!(matches!(closed, Err(MoveError::Closed)), "{closed:?}");
}

/// What a read says of a shard of another.
fn not_mine<T: std::fmt::Debug>(read: Result<T, StoreError>) {
    assert!(matches!(read, Err(StoreError::NotMine)), "{read:?}");
}

/// Each kind of read looks whose shard it is, in the statement that reads.
async fn reads_nothing(store: &SeaStore, user: &str) {
    not_mine(store.page(bare(user), MessageId::ZERO, ALL).await);
    not_mine(store.headers(bare(user), MessageId::ZERO, 10).await);
    for detail in [Detail::Messages, Detail::Bytes, Detail::Senders] {
        not_mine(store.usage(bare(user), detail).await);
    }
}

async fn nothing_of_a_shard_is_read_that_was_given_away(at: ServerBed) {
    let (a, b) = two(&at).await;
    let user = user_of(0);
    run(&*a, vec![append(&user, id(&a, 0, 1))]).await;
    a.give(some([0]), me(&b)).await.unwrap();
    reads_nothing(&a, &user).await;
    assert_eq!(ids(&*b, &user).await.len(), 1);
    // Nor when it does not know: the statement looks.
    let user = user_of(1);
    run(&*a, vec![append(&user, id(&a, 1, 1))]).await;
    let taken = "UPDATE shard SET owner = 'b', incarnation = 2 WHERE shard = 1";
    execute(&at.raw().await, taken).await;
    assert!(a.epoch(ShardId(1)) > 0);
    reads_nothing(&a, &user).await;
    // Nothing there at all is no error for who has the shard.
    let nobody = (0..).map(|n| format!("nobody{n}"));
    let nobody = nobody.into_iter().find(|name| shard_of(name) == ShardId(2)).unwrap();
    assert_eq!(ids(&*a, &nobody).await, [0; 0]);
    assert_eq!(a.headers(bare(&nobody), MessageId::ZERO, 10).await.unwrap().len(), 0);
    for detail in [Detail::Messages, Detail::Bytes, Detail::Senders] {
        assert_eq!(a.usage(bare(&nobody), detail).await.unwrap().all.messages, 0);
    }
    let fenced = node(&at, "a").await;
    for detail in [Detail::Messages, Detail::Bytes, Detail::Senders] {
        let read = a.usage(bare(&nobody), detail).await;
        assert!(matches!(read, Err(StoreError::Fenced)), "{read:?}");
    }
    let read = a.headers(bare(&nobody), MessageId::ZERO, 10).await;
    assert!(matches!(read, Err(StoreError::Fenced)), "{read:?}");
    fenced.close().await;
}

/// What began when it had the shard before is not answered by what it has now.
async fn a_shard_that_went_and_came_back_is_not_the_same(at: ServerBed) {
    let (a, b) = two(&at).await;
    let user = user_of(0);
    let first = id(&a, 0, 1);
    run(&*a, vec![append(&user, first)]).await;
    // Without its knowledge: it still has the epoch from before.
    let raw = at.raw().await;
    let epoch = value::<i64>(&raw, "SELECT epoch FROM shard WHERE shard = 0").await;
    execute(&raw, &format!("UPDATE shard SET epoch = {} WHERE shard = 0", epoch + 100)).await;
    execute(&raw, &format!("UPDATE epoch SET value = {}", epoch + 100)).await;
    not_mine(a.page(bare(&user), MessageId::ZERO, ALL).await);
    a.give(some([0]), me(&b)).await.unwrap();
    b.ownership().await.unwrap();
    b.give(some([0]), me(&a)).await.unwrap();
    a.ownership().await.unwrap();
    assert_eq!(i64::from(a.epoch(ShardId(0))), epoch + 102);
    assert_eq!(ids(&*a, &user).await, [first]);
}

async fn what_waits_for_a_shard_that_moves_is_tried_elsewhere(at: ServerBed) {
    let (a, b) = two(&at).await;
    let (goes, stays) = (user_of(0), user_of(1));
    // The lock of a table holds the transaction up; the rest waits.
    let other = at.raw().await;
    let (hold, let_go) = match at.kind {
        Kind::Postgres => ("BEGIN; LOCK TABLE offline_message IN ACCESS EXCLUSIVE MODE", "COMMIT"),
        Kind::MariaDb => ("LOCK TABLES offline_message WRITE", "UNLOCK TABLES"),
    };
    execute(&other, hold).await;
    let append_one = |user: &str, shard, n| submit(&*a, vec![append(user, id(&a, shard, n))]);
    let held_up = append_one(&goes, 0, 1);
    let giving = tokio::spawn({
        let (a, b) = (a.clone(), me(&b));
        async move { a.give(some([0]), b).await }
    });
    let waits = (append_one(&goes, 0, 2), append_one(&stays, 1, 3));
    execute(&other, let_go).await;
    giving.await.unwrap().unwrap();
    // Both may have been in the transaction that was held up, or one, or none.
    let outcomes = [held_up.await.unwrap().remove(0), waits.0.await.unwrap().remove(0)];
    b.ownership().await.unwrap();
    let there = ids(&*b, &goes).await;
    let stored = outcomes.iter().filter(|outcome| **outcome == Outcome::Stored).count();
    assert_eq!(there.len(), stored, "{outcomes:?} {there:?}");
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored || outcome.is_retry()));
    assert_eq!(waits.1.await.unwrap(), [Outcome::Stored]);
    // After it, nothing of it is stored here.
    let late = submit(&*a, vec![append(&goes, 1 << 61), append(&stays, id(&a, 1, 9))]);
    assert_eq!(late.await.unwrap(), [Outcome::NotMine, Outcome::Stored]);
}

/// The lane has another term than the node knows: it rolls back, looks, and tries the rest again.
async fn a_batch_of_which_a_part_has_moved(at: ServerBed) {
    let (a, b) = two(&at).await;
    let raw = at.raw().await;
    let half = |n: i64| {
        let writes = (0..4).flat_map(|shard| {
            [
                append(&user_of(shard), n),
                append(&user_of(shard), n + 1),
                delete(&user_of(shard), &[n]),
            ]
        });
        writes.collect::<Vec<_>>()
    };
    assert!(run(&*a, half(1)).await.iter().all(|outcome| !outcome.is_retry()));
    // Two go, in the way of one who gives them: under the lock of the lane.
    let moves = "UPDATE shard SET owner = 'b', incarnation = 2, epoch = 50 WHERE shard IN (1, 3)";
    for change in ["BEGIN", "UPDATE lane SET term = term + 1 WHERE node = 'a'", moves, "COMMIT"] {
        execute(&raw, change).await;
    }
    let beat = match at.kind {
        Kind::Postgres => "SELECT max(beat) FROM beat WHERE node = 'a'",
        Kind::MariaDb => "SELECT beat FROM lane WHERE node = 'a'",
    };
    let before = value::<i64>(&raw, beat).await;
    let outcomes = run(&*a, half(11)).await;
    let stays = [Outcome::Stored, Outcome::Stored, done(1)];
    let goes = vec![Outcome::NotMine; 3];
    assert_eq!(outcomes, [&stays[..], &goes, &stays, &goes].concat());
    // What was rolled back left nothing behind.
    for shard in [1, 3] {
        let there =
            format!("SELECT count(*) FROM offline_message WHERE recipient = '{}'", user_of(shard));
        assert_eq!(value::<i64>(&raw, &there).await, 1);
        assert_eq!(a.epoch(ShardId(shard)), 0);
    }
    assert!(value::<i64>(&raw, beat).await > before);
    assert!(a.healthy());
    // One comes: nobody is told to try again, though nobody said so to the node.
    b.give(some([4]), me(&a)).await.unwrap();
    let comes = run(&*a, vec![append(&user_of(4), 1), append(&user_of(0), 31)]).await;
    assert_eq!(comes, [Outcome::Stored, Outcome::Stored]);
    // Nor when all of a batch is gone.
    assert_eq!(run(&*b, vec![append(&user_of(4), 2)]).await, [Outcome::NotMine]);
}

async fn of_two_who_take_the_same_one_gets_it(at: ServerBed) {
    let (a, b) = two(&at).await;
    let c = node(&at, "c").await;
    take(&c, [2]).await;
    // By that a was fenced, with all it had.
    a.superseded().await;
    for round in 0..5 {
        let seen = b.ownership().await.unwrap().shards;
        let all: Vec<_> = (0..2).map(|shard| seen[shard].clone()).collect();
        let (one, other) = tokio::join!(b.take(all.clone()), c.take(all));
        let lost = [&one, &other].into_iter().filter(|taken| taken.is_err());
        let lost: Vec<_> = lost.map(|taken| format!("{taken:?}")).collect();
        assert_eq!(lost, ["Err(Changed)"], "round {round}");
        let (winner, loser) = if one.is_ok() { (&b, &c) } else { (&c, &b) };
        assert!(winner.epoch(ShardId(0)) > 0 && winner.epoch(ShardId(1)) > 0);
        assert_eq!(loser.epoch(ShardId(0)), 0);
        // The loser lives, and has what it had.
        let (own, shard) = if one.is_ok() { (user_of(2), 2) } else { (user_of(5), 5) };
        let n = id(loser, shard, 100 + round);
        assert_eq!(run(&**loser, vec![append(&own, n)]).await, [Outcome::Stored]);
        // Back to nobody, as one who ended before any took them.
        let raw = at.raw().await;
        let (node, number) = (me(winner).node, me(winner).number);
        let back = format!(
            "UPDATE shard SET owner = '', incarnation = 0 \
             WHERE owner = '{node}' AND incarnation = {number} AND shard < 2"
        );
        let term = format!("UPDATE lane SET term = term + 1 WHERE node = '{node}'");
        for change in ["BEGIN", &term, &back, "COMMIT"] {
            execute(&raw, change).await;
        }
        winner.ownership().await.unwrap();
    }
}

async fn a_take_of_what_is_not_as_it_was_seen_changes_nothing(at: ServerBed) {
    let (a, b) = two(&at).await;
    let seen = b.ownership().await.unwrap().shards;
    a.give(some([0]), me(&b)).await.unwrap();
    b.give(some([0]), me(&a)).await.unwrap();
    a.ownership().await.unwrap();
    // The owner is the same again, the epoch is not.
    let stale = b.take(vec![seen[0].clone(), seen[1].clone()]).await;
    assert!(matches!(stale, Err(MoveError::Changed)), "{stale:?}");
    // One's own is not taken; nor what is not there.
    let own = a.take(a.ownership().await.unwrap().shards[0..1].to_vec()).await;
    assert!(matches!(own, Err(MoveError::Changed)), "{own:?}");
    let beyond = amphora::store::Holding { shard: ShardId(SHARDS), ..seen[4].clone() };
    let beyond = a.take(vec![seen[5].clone(), beyond]).await;
    assert!(matches!(beyond, Err(MoveError::Changed)), "{beyond:?}");
    // Nobody was fenced, nothing has moved.
    for (store, shard) in [(&a, 0), (&a, 1), (&b, 4), (&b, 5)] {
        let written = run(&**store, vec![append(&user_of(shard), id(store, shard, 1))]).await;
        assert_eq!(written, [Outcome::Stored]);
    }
    assert!(a.ownership().await.unwrap().members.iter().all(|member| !member.fenced));
    a.take(Vec::new()).await.unwrap();
    a.give(Vec::new(), me(&b)).await.unwrap();
    a.give(some([0]), me(&a)).await.unwrap();
    assert_eq!(run(&*a, vec![append(&user_of(0), id(&a, 0, 2))]).await, [Outcome::Stored]);
}

async fn a_node_whose_shards_are_taken_is_fenced(at: ServerBed) {
    let (a, b) = two(&at).await;
    let (first, second) = (id(&a, 0, 1), id(&a, 0, 2));
    run(&*a, vec![append(&user_of(0), first), append(&user_of(1), first)]).await;
    take(&b, [0]).await;
    // Of the shards that were not taken, too: it may have stood still with all of them.
    for shard in [0, 1] {
        let read = a.page(bare(&user_of(shard)), MessageId::ZERO, ALL).await;
        assert!(matches!(read, Err(StoreError::Fenced)), "{read:?}");
    }
    let due = a.due(DuePosition::start(), crate::bed::at(1 << 30), ALL).await;
    assert!(matches!(due, Err(StoreError::Fenced)), "{due:?}");
    let outcomes = run(&*a, vec![append(&user_of(0), second), append(&user_of(1), second)]).await;
    assert_eq!(outcomes, [Outcome::Retry, Outcome::Retry]);
    a.superseded().await;
    let seen = b.ownership().await.unwrap();
    assert!(seen.members.iter().any(|member| member.incarnation == me(&a) && member.fenced));
    assert!(matches!(a.ownership().await, Err(MoveError::Fenced)));
    let taken = a.take(vec![seen.shards[0].clone()]).await;
    assert!(matches!(taken, Err(MoveError::Fenced)), "{taken:?}");
    // The others may be taken at any time, and what is in them is there.
    take(&b, 1..4).await;
    assert!(id(&b, 0, 1) > second && id(&b, 1, 1) > second);
    assert_eq!(ids(&*b, &user_of(1)).await, [first]);
}

async fn a_fenced_node_is_given_nothing(at: ServerBed) {
    let (a, b) = two(&at).await;
    let nobody = Incarnation { node: "nobody".into(), number: 1 };
    let earlier = me(&b);
    b.close().await;
    let later = node(&at, "b").await;
    let fenced = node(&at, "c").await;
    let closed = me(&fenced);
    fenced.close().await;
    for to in [nobody, earlier, closed] {
        let given = a.give(some([0, 1]), to.clone()).await;
        assert!(matches!(&given, Err(MoveError::ReceiverFenced(of)) if *of == to), "{given:?}");
    }
    // It has them still.
    assert_eq!(run(&*a, vec![append(&user_of(0), id(&a, 0, 1))]).await, [Outcome::Stored]);
    a.give(some([0, 1]), me(&later)).await.unwrap();
    later.ownership().await.unwrap();
    assert_eq!(run(&*later, vec![append(&user_of(0), id(&later, 0, 1))]).await, [Outcome::Stored]);
}

async fn a_successor_has_the_shards_of_the_one_before(at: ServerBed) {
    let (a, b) = two(&at).await;
    let first = id(&a, 0, 1);
    run(&*a, vec![append(&user_of(0), first)]).await;
    let next = node(&at, "a").await;
    let held =
        |store: &SeaStore| (0..SHARDS).filter(|n| store.epoch(ShardId(*n)) > 0).collect::<Vec<_>>();
    assert_eq!(held(&next), [0, 1, 2, 3]);
    assert!(id(&next, 0, 1) > first);
    assert_eq!(run(&*a, vec![append(&user_of(0), first + 1)]).await, [Outcome::Retry]);
    a.superseded().await;
    assert_eq!(run(&*next, vec![append(&user_of(0), id(&next, 0, 1))]).await, [Outcome::Stored]);
    // The other noticed nothing.
    assert_eq!(run(&*b, vec![append(&user_of(4), id(&b, 4, 1))]).await, [Outcome::Stored]);
    // What was taken meanwhile is not the successor's.
    next.close().await;
    take(&b, [0]).await;
    let last = node(&at, "a").await;
    assert_eq!(held(&last), [1, 2, 3]);
    assert_eq!(run(&*last, vec![append(&user_of(0), 1 << 61)]).await, [Outcome::NotMine]);
}

async fn epochs_only_grow(at: ServerBed) {
    let (mut a, b) = two(&at).await;
    let shard = ShardId(0);
    let mut epochs = vec![a.epoch(shard)];
    for _ in 0..3 {
        a.give(vec![shard], me(&b)).await.unwrap();
        b.ownership().await.unwrap();
        epochs.push(b.epoch(shard));
        a.close().await;
        a = node(&at, "a").await;
        b.give(vec![shard], me(&a)).await.unwrap();
        a.ownership().await.unwrap();
        epochs.push(a.epoch(shard));
        a.close().await;
        a = node(&at, "a").await;
        epochs.push(a.epoch(shard));
        take(&b, [0]).await;
        epochs.push(b.epoch(shard));
        a.superseded().await;
        a = node(&at, "a").await;
        b.give(vec![shard], me(&a)).await.unwrap();
        a.ownership().await.unwrap();
        epochs.push(a.epoch(shard));
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    // One who has it alone, after all.
    a.close().await;
    b.close().await;
    let alone = StoreSettings { shared: false, ..shared(&at, "c") };
    let alone = SeaStore::open(alone).await.unwrap();
    for shard in 0..SHARDS {
        assert!(alone.epoch(ShardId(shard)) > *epochs.last().unwrap());
    }
}

async fn moves_under_load_lose_and_double_nothing(at: ServerBed) {
    let (a, b) = two(&at).await;
    let nodes = Nodes::new(vec![a.clone(), b.clone()]);
    let load = Load::start(&nodes);
    for round in 0..6 {
        load.goes_on(100).await;
        let shard = round % SHARDS;
        // Whoever has it gives it; the other learns of it by himself, sooner or later.
        let (from, to) = if a.epoch(ShardId(shard)) > 0 { (&a, &b) } else { (&b, &a) };
        let both = some([shard, (shard + 3) % SHARDS]);
        let both = both.into_iter().filter(|shard| from.epoch(*shard) > 0).collect();
        from.give(both, me(to)).await.unwrap();
        if round % 2 == 0 {
            to.ownership().await.unwrap();
        }
    }
    // The second is believed dead.
    load.goes_on(100).await;
    let seen = a.ownership().await.unwrap().shards;
    let others = seen.into_iter().filter(|one| one.owner != Some(me(&a))).collect();
    a.take(others).await.unwrap();
    load.goes_on(100).await;
    load.check().await;
}

async fn the_unknown_outcome_of_a_move(at: ServerBed) {
    let port = TestServer::shared(at.kind).port;
    let proxy = Proxy::to(port).await;
    let settings = shared(&at, "a");
    let url = settings.url.replace(&port.to_string(), &proxy.port.to_string());
    let a = SeaStore::open(StoreSettings { url, ..settings }).await.unwrap();
    let b = node(&at, "b").await;
    let seen = a.ownership().await.unwrap().shards;

    proxy.next_commit(Fate::IsLost);
    let lost = a.take(seen.clone()).await;
    assert!(matches!(lost, Err(MoveError::Failed(_))), "{lost:?}");
    assert_eq!(a.ownership().await.unwrap().shards, seen);
    assert_eq!(run(&a, vec![append(&user_of(0), 1)]).await, [Outcome::NotMine]);

    proxy.next_commit(Fate::IsNotAnswered);
    a.take(seen).await.unwrap();
    assert!(proxy.is_idle() && a.epoch(ShardId(0)) > 0);
    assert_eq!(run(&a, vec![append(&user_of(0), id(&a, 0, 1))]).await, [Outcome::Stored]);

    proxy.next_commit(Fate::IsLost);
    let lost = a.give(some([0]), me(&b)).await;
    assert!(matches!(lost, Err(MoveError::Failed(_))), "{lost:?}");
    assert_eq!(run(&a, vec![append(&user_of(0), id(&a, 0, 2))]).await, [Outcome::Stored]);
    assert_eq!(run(&*b, vec![append(&user_of(0), 3)]).await, [Outcome::NotMine]);

    proxy.next_commit(Fate::IsNotAnswered);
    a.give(some([0]), me(&b)).await.unwrap();
    assert_eq!(a.epoch(ShardId(0)), 0);
    assert_eq!(run(&a, vec![append(&user_of(0), 4)]).await, [Outcome::NotMine]);
    b.ownership().await.unwrap();
    assert_eq!(ids(&*b, &user_of(0)).await.len(), 2);
    assert_eq!(run(&*b, vec![append(&user_of(0), id(&b, 0, 1))]).await, [Outcome::Stored]);
}

/// It holds the counter, and was not seen for a while: its session is ended, and it may go on.
async fn a_node_that_stands_still_within_a_move_is_in_nobodys_way(at: ServerBed) {
    let (a, b) = two(&at).await;
    let stuck = at.raw().await;
    let session = match at.kind {
        Kind::Postgres => {
            "SELECT pid::bigint, extract(epoch FROM backend_start)::text FROM pg_stat_activity \
             WHERE pid = pg_backend_pid()"
        }
        Kind::MariaDb => "SELECT CAST(CONNECTION_ID() AS SIGNED), ''",
    };
    let lane = format!(
        "INSERT INTO lane (node, incarnation, fenced, beat, term, seen_at, session, since) \
         SELECT 'stuck', 1, FALSE, 0, 0, 0, s.* FROM ({session}) AS s"
    );
    execute(&stuck, &lane).await;
    execute(&stuck, "BEGIN").await;
    execute(&stuck, "SELECT value FROM epoch FOR UPDATE").await;
    // Who gives tries less often than who takes; both end the session.
    a.give(some([0]), me(&b)).await.unwrap();
    take(&b, [1]).await;
}

async fn what_is_due_is_found_by_its_owner(at: ServerBed) {
    let (a, b) = two(&at).await;
    let at_second = crate::bed::at;
    let expiring = |shard: u32, n: i64| {
        let expiry = Some(Expiry { at: at_second(n), rule: 0 });
        Write::Append(NewMessage { expiry, ..message(&user_of(shard), n) })
    };
    // Those of the other lie before, between and behind.
    run(&*b, (1..=20).map(|n| expiring(4, n)).collect()).await;
    run(&*a, vec![expiring(0, 21), expiring(1, 23)]).await;
    run(&*b, vec![expiring(5, 22), expiring(6, 24)]).await;
    let start = DuePosition::start;
    let few = amphora::store::PageLimit { rows: 3, bytes: 1 << 20 };
    let due = async |store: &SeaStore, from: DuePosition| {
        let due = store.due(from, at_second(1000), few).await.unwrap();
        due.iter().map(|one| one.message.id.0).collect::<Vec<_>>()
    };
    assert_eq!(a.next_due(start()).await.unwrap(), Some(at_second(21)));
    assert_eq!(b.next_due(start()).await.unwrap(), Some(at_second(1)));
    let found = due(&a, start()).await;
    assert!(!found.is_empty() && found.iter().all(|n| [21, 23].contains(n)), "{found:?}");
    let first = a.due(start(), at_second(21), ALL).await.unwrap().remove(0);
    assert_eq!(due(&a, first.position()).await, [23]);
    let rest = a.due(start(), at_second(1000), ALL).await.unwrap().pop().unwrap();
    assert_eq!(a.next_due(rest.position()).await.unwrap(), None);
    assert_eq!(due(&a, rest.position()).await, [0; 0]);
    // A shard that was given is looked for at once, though nobody said so to the node.
    b.give(some([4]), me(&a)).await.unwrap();
    assert_eq!(a.due(start(), at_second(1000), ALL).await.unwrap().len(), 2 + 20);
    assert_eq!(b.due(start(), at_second(1000), ALL).await.unwrap().len(), 2);
}

async fn old_messages_are_removed_by_their_owner(at: ServerBed) {
    let (a, b) = two(&at).await;
    run(&*a, vec![append(&user_of(0), 1), append(&user_of(1), 2)]).await;
    run(&*b, vec![append(&user_of(4), 1), append(&user_of(5), 2)]).await;
    let later = crate::bed::at(100_000);
    assert_eq!(a.purge(Some(later), later).await.unwrap().messages, 2);
    assert_eq!(ids(&*b, &user_of(4)).await, [1]);
    assert_eq!(b.purge(Some(later), later).await.unwrap().messages, 2);
}

async fn the_last_epoch_moves_nothing(at: ServerBed) {
    let (a, b) = two(&at).await;
    execute(&at.raw().await, "UPDATE epoch SET value = 2097150").await;
    a.give(some([0]), me(&b)).await.unwrap();
    let given = a.give(some([1]), me(&b)).await;
    assert!(matches!(given, Err(MoveError::EpochsUsedUp)), "{given:?}");
    b.ownership().await.unwrap();
    assert_eq!(b.epoch(ShardId(0)), MessageId::MAX_EPOCH);
    assert_eq!(run(&*a, vec![append(&user_of(1), id(&a, 1, 1))]).await, [Outcome::Stored]);
}

/// What was submitted after it does not overtake it, though the shard has come back meanwhile.
async fn a_run_that_met_a_move_is_given_up(at: ServerBed) {
    let (a, b) = two(&at).await;
    let shared = Run::new();
    let of_run = |n: u64| {
        let id = MessageId(id(&a, 0, n));
        let new = NewMessage { id, run: shared.clone(), ..message(&user_of(0), n as i64) };
        submit(&*a, vec![Write::Append(new)])
    };
    assert_eq!(of_run(1).await.unwrap(), [Outcome::Stored]);
    a.give(some([0]), me(&b)).await.unwrap();
    assert_eq!(of_run(2).await.unwrap(), [Outcome::NotMine]);
    assert!(shared.is_given_up());
    b.give(some([0]), me(&a)).await.unwrap();
    a.ownership().await.unwrap();
    assert_eq!(of_run(3).await.unwrap(), [Outcome::Retry]);
    let id = id(&a, 0, 4);
    assert_eq!(run(&*a, vec![again(&user_of(0), id, "user-2")]).await, [Outcome::Stored]);
}

async fn of_those_who_start_at_once_each_has_a_number_of_its_own(at: ServerBed) {
    // The tables are there.
    node(&at, "first").await.close().await;
    let names: Vec<String> = (0..6).map(|n| format!("node{n}")).collect();
    let stores = futures::future::join_all(names.iter().map(|name| node(&at, name))).await;
    let mut numbers: Vec<u32> = stores.iter().map(|store| me(store).number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 4, 5, 6, 7]);
}
