"""The checker of histories finds what it is there for, and nothing in a history that is well."""

import pytest

from harness.checker import check
from harness.history import Accepted, Came, Confirmed, History, Owned, Refused, Sent, Stored, Wrote
from harness.schedule import TO_A_NODE, TO_ALL, schedule


def sent(*numbers, sender="a", user="b"):
    """Written, and accepted."""
    for n in numbers:
        yield Sent(f"{sender}{user}{n}", sender, user, n)
        yield Accepted(f"{sender}{user}{n}")


def came(session, *numbers, sender="a", user="b"):
    """To a session of the user."""
    return [Came(f"{sender}{user}{n}", user, session) for n in numbers]


def findings(*events):
    """The first words of what is found."""
    return [line.partition(":")[0] for line in check(History(events))]


def test_well():
    """Two sessions, two senders, one message that is stored still, one that was never accepted."""
    assert findings(
        *sent(0, 1, 2, 3),
        *sent(0, 1, sender="c"),
        Sent("ab4", "a", "b", 4),
        *came("b#1", 0),
        *came("b#1", 0, sender="c"),
        *came("b#1", 1),
        Confirmed("b#1", 3),
        *came("b#2", 2),
        *came("b#2", 1, sender="c"),
        Confirmed("b#2", 2),
        Stored("ab3"),
        Owned(0, 1, "n1/1"),
        Owned(0, 2, "n2/2"),
        Owned(1, 1, "n1/1"),
    ) == []


def test_lost():
    """Accepted, and nowhere."""
    assert findings(*sent(0, 1, 2), *came("b#1", 0, 2)) == ["lost"]
    assert findings(*sent(0), Stored("ab0")) == []
    assert findings(*sent(0), Refused("ab0", "service-unavailable")) == []


def test_refused_and_kept():
    """Nobody may be told that a message failed that did not."""
    assert findings(*sent(0), Refused("ab0", "x"), *came("b#1", 0)) == ["refused and kept"]
    assert findings(*sent(0), Refused("ab0", "x"), Stored("ab0")) == ["refused and kept"]


def test_twice_in_a_session():
    """Whatever was confirmed."""
    assert "twice" in findings(*sent(0), *came("b#1", 0, 0))


@pytest.mark.parametrize("count, found", [(0, []), (1, []), (2, ["twice"]), (3, ["twice", "twice"])])
def test_twice_over_sessions(count, found):
    """What the first had confirmed may not come to the second."""
    events = [*sent(0, 1, 2), *came("b#1", 0, 1, 2), Confirmed("b#1", count), *came("b#2", 1, 2)]
    assert findings(*events) == found


def test_stored_after_it_was_confirmed():
    """It would come again."""
    assert findings(*sent(0), *came("b#1", 0), Confirmed("b#1", 1), Stored("ab0")) == ["twice"]
    assert findings(*sent(0), *came("b#1", 0), Stored("ab0")) == []


def test_disordered_in_a_session():
    """One later than its successor."""
    assert findings(*sent(0, 1, 2), *came("b#1", 0, 2, 1)) == ["disordered", "disordered"]


def test_disordered_over_sessions():
    """It came first to a later session than its successor did."""
    assert findings(*sent(0, 1), *came("b#1", 1), *came("b#2", 0)) == ["disordered"]


def test_what_comes_again_keeps_its_order():
    """A session that had not confirmed died: its end comes again, in order."""
    before = [*sent(0, 1, 2, 3), *came("b#1", 0, 1, 2)]
    assert findings(*before, *came("b#2", 1, 2, 3)) == []
    assert findings(*before, *came("b#2", 2, 1, 3)) == ["disordered"]


def test_order_is_for_a_sender_and_a_user():
    """Not between senders, nor between users."""
    events = [*sent(0, 1), *sent(0, 1, sender="c"), *sent(0, 1, user="d")]
    texts = [*came("b#1", 0, 1), *came("b#1", 0, 1, sender="c"), *came("d#1", 0, 1, user="d")]
    assert findings(*events, *texts) == []


def test_unknown_and_astray():
    """What nobody sent, and what was sent to somebody else."""
    assert findings(Came("x", "b", "b#1")) == ["unknown"]
    assert findings(*sent(0), Came("ab0", "d", "d#1")) == ["astray"]


def test_two_owners():
    """In one epoch of a shard; another shard may have the same number."""
    assert findings(Owned(0, 5, "n1/1"), Owned(1, 5, "n2/1")) == []
    assert findings(Owned(0, 5, "n1/1"), Owned(0, 5, "n2/1")) == ["two owners"]
    assert findings(Owned(0, 5, "n1/1"), Owned(0, 5, "n1/2")) == ["two owners"]


def test_an_old_epoch():
    """They only grow."""
    assert findings(Owned(0, 5, "n1/1"), Owned(0, 4, "n2/1")) == ["an old epoch"]


def test_behind_the_fence():
    """Something of an owner's that was not there when the next one was seen."""
    taken = [Owned(0, 5, "n1/1"), Wrote(0, 5), Owned(0, 6, "n2/1")]
    assert findings(*taken, Wrote(0, 6), Wrote(1, 1)) == []
    assert findings(*taken, Wrote(0, 5)) == ["behind the fence"]


def test_schedules():
    """The same for the same seed, with every kind of fault sooner or later, and never two at one node."""
    assert schedule(7, 30) == schedule(7, 30) != schedule(8, 30)
    steps = schedule(7, 3000)
    assert {step.fault for step in steps} == {*TO_A_NODE, *TO_ALL}
    ends = [0.0] * 3
    for step in steps:
        if step.node is not None:
            assert step.at >= ends[step.node], step
            ends[step.node] = step.at + step.lasts
