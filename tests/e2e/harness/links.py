"""Several links to one server: whose users are whose ("Several links" in docs/intercept.md)."""

import hashlib

#: what two nodes connect as
LINKS = ("amp1.example.org", "amp2.example.org")


def weight(jid, domain):
    """A user's hash for a link."""
    return int.from_bytes(hashlib.sha256(jid.encode() + b"\0" + domain.encode()).digest()[:4], "big")


def shard_of(jid, shards):
    """A user's shard."""
    return int.from_bytes(hashlib.sha256(jid.encode()).digest()[:4], "big") % shards


def owner(jid, domains=LINKS):
    """The link to which a user belongs while these are there."""
    return max(domains, key=lambda domain: (weight(jid, domain), domain))


def person_of(server, domain, name="bob", domains=LINKS):
    """A new account that belongs to that link."""
    for _ in range(100):
        (jid,) = server.people(name)
        if owner(jid, domains) == domain:
            return jid
    raise AssertionError("a hash that prefers one link")
