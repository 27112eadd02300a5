"""What a history may not hold: invariants I1 to I4 as clients and the database see them.

Pure: a history goes in, findings come out, each a line of text.
"""

import collections

from .history import Accepted, Came, Confirmed, Owned, Refused, Sent, Stored, Wrote


def check(history):
    """All that is wrong; an empty list if nothing is."""
    rules = (lost, refused_and_kept, twice, disordered, owners, fence)
    return [finding for rule in rules for finding in rule(history)]


def lost(history):
    """I1: what was accepted has come, is stored, or went back to its sender."""
    kept = {event.id for kind in (Came, Stored, Refused) for event in history.of(kind)}
    for event in history.of(Accepted):
        if event.id not in kept:
            yield f"lost: {event.id} was accepted, did not come and is not stored"


def refused_and_kept(history):
    """I2: what went back to its sender is with nobody else."""
    kept = {event.id for kind in (Came, Stored) for event in history.of(kind)}
    for event in history.of(Refused):
        if event.id in kept:
            yield f"refused and kept: {event.id} went back ({event.condition}), and came or is stored"


def twice(history):
    """I2: no session gets a message twice, and nobody gets again what an earlier session of his
    confirmed, or finds it stored still."""
    confirmed = collections.Counter()
    for event in history.of(Confirmed):
        confirmed[event.session] = max(confirmed[event.session], event.count)
    places, sure = collections.Counter(), {}
    seen = set()
    for event in history.of(Came):
        places[event.session] += 1
        if (event.session, event.id) in seen:
            yield f"twice: {event.id} came to {event.session} again"
        elif event.id in sure:
            yield f"twice: {event.id} came to {event.session}, after {sure[event.id]} had confirmed it"
        seen.add((event.session, event.id))
        if places[event.session] <= confirmed[event.session]:
            sure.setdefault(event.id, event.session)
    for event in history.of(Stored):
        if event.id in sure:
            yield f"twice: {event.id} is stored, after {sure[event.id]} had confirmed it"


def disordered(history):
    """I3: what a sender wrote to a user comes in that order: to each session, and to all of them
    together when what came again is left out."""
    sent = {event.id: event for event in history.of(Sent)}
    seen = set()
    last = {}
    for event in history.of(Came):
        message = sent.get(event.id)
        if message is None:
            yield f"unknown: {event.id} came to {event.session}, and nobody sent it"
            continue
        pair = (message.sender, message.user)
        if message.user != event.user:
            yield f"astray: {event.id} came to {event.session}"
        views = [(pair, event.session)] if event.id in seen else [(pair, event.session), (pair, None)]
        seen.add(event.id)
        for view in views:
            before = last.get(view)
            if before is not None and before.number > message.number:
                where = f"in {event.session}" if view[1] else f"to {event.user}"
                yield f"disordered: {message.id} came after {before.id} {where}"
            else:
                last[view] = message


def owners(history):
    """I4: one owner for each epoch of a shard, and epochs only grow."""
    known = {}
    latest = {}
    for event in history.of(Owned):
        owner = known.setdefault((event.shard, event.epoch), event.owner)
        if owner != event.owner:
            yield f"two owners: shard {event.shard} in epoch {event.epoch} is {owner}'s and {event.owner}'s"
        if event.epoch < latest.get(event.shard, 0):
            yield f"an old epoch: shard {event.shard} went from {latest[event.shard]} to {event.epoch}"
        latest[event.shard] = max(event.epoch, latest.get(event.shard, 0))


def fence(history):
    """I4: who had a shard before its owner of now writes no more."""
    latest = {}
    for event in history.all():
        if isinstance(event, Owned):
            latest[event.shard] = event.epoch
        elif isinstance(event, Wrote) and event.epoch < latest.get(event.shard, 0):
            now = latest[event.shard]
            yield f"behind the fence: in shard {event.shard} something of epoch {event.epoch}, in {now}"
