"""What XEP-0079 asks for, worked out a second time and without looking at the node.

Small on purpose: one rule, one recipient, and what sender and recipient are to get.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """Where the recipient is, and which of his addresses the sender wrote to."""

    name: str
    #: what would happen without rules: direct, stored or none (R19, R33)
    default: str
    #: the resource written to, or None for the bare JID
    addressed: str | None = None
    #: the resource that would get it, or None
    target: str | None = None


SITUATIONS = [
    Situation("online", "direct", None, "phone"),
    Situation("online-full", "direct", "phone", "phone"),
    Situation("elsewhere", "direct", "desk", "phone"),
    Situation("offline", "stored"),
    Situation("offline-full", "stored", "desk"),
    Situation("negative", "stored"),
    Situation("negative-full", "direct", "phone", "phone"),
    Situation("missing", "none"),
]

CONDITIONS = [
    ("deliver", "direct"),
    ("deliver", "stored"),
    ("deliver", "none"),
    ("deliver", "forward"),
    ("deliver", "gateway"),
    ("expire-at", "past"),
    ("expire-at", "future"),
    ("match-resource", "any"),
    ("match-resource", "exact"),
    ("match-resource", "other"),
]

ACTIONS = ["alert", "drop", "error", "notify"]


@dataclass(frozen=True)
class Expected:
    """`status` of the reply (None: no reply), and when the recipient gets the message."""

    status: str | None
    bounced: bool
    delivery: str


def is_met(situation, condition, value):
    """R33, R38, R40, R41."""
    if condition == "deliver":
        return value == situation.default
    if condition == "expire-at":
        return value == "past"
    if situation.default == "none":
        return False  # no destination at all
    if value == "any":
        return True
    matches = situation.target == situation.addressed
    return matches if value == "exact" else not matches


def expected(situation, condition, value, action):
    """R21, R22, R44 to R51."""
    met = is_met(situation, condition, value)
    status = action if met and action != "drop" else None
    if met and action != "notify":
        return Expected(status, False, "never")
    delivery = {"direct": "now", "stored": "later", "none": "never"}[situation.default]
    return Expected(status, situation.default == "none", delivery)
