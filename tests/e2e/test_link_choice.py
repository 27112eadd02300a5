"""The interceptors and the node count the hash for a link alike ("Several links" in docs/intercept.md)."""

import subprocess

import pytest

from harness.links import owner, weight
from harness.prosody import MODULE, ROOT

LINES = (ROOT / "tests" / "vectors" / "links.tsv").read_text(encoding="utf-8").splitlines()
VECTORS = [tuple(line.split("\t")) for line in LINES if not line.startswith("#")]

#: loads the file as the module does, and prints a weight and a choice for each line of its input
LUA = """
package.path, package.cpath = "/usr/lib/prosody/?.lua;"..package.path, "/usr/lib/prosody/?.so;"..package.cpath;
prosody, module = { hosts = {} }, { host = "example.org" };
local links = dofile(arg[1])({ facts = {} }, { "amp2.example.org", "amp1.example.org", "amp3.example.org" });
local which = { links.of_component("amp2.example.org"), links.of_component("amp3.example.org") };
for _, link in ipairs(which) do link.security = "strict"; end
links.came(which);
for line in io.lines() do
	local bare, component = line:match("^([^\\t]*)\\t([^\\t]*)");
	print(links.weight(bare, component).."\\t"..links.of(bare).component);
end
"""


def test_the_vectors_are_right():
    """What the tests themselves count."""
    assert len(VECTORS) > 50
    for jid, component, number in VECTORS:
        assert weight(jid, component) == int(number), (jid, component)


def test_prosody(tmp_path):
    """The interceptor's own file, and its choice among the links that are there."""
    script = tmp_path / "weights.lua"
    script.write_text(LUA)
    done = subprocess.run(
        ["lua5.4", str(script), str(MODULE / "amphora_links.lib.lua")],
        input="".join(f"{jid}\t{component}\n" for jid, component, _ in VECTORS),
        capture_output=True,
        text=True,
        check=True,
    )
    there = ("amp2.example.org", "amp3.example.org")
    expected = [f"{number}\t{owner(jid, there)}" for jid, _, number in VECTORS]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("names", [("a.example", "b.example"), ("b.example", "a.example")])
def test_every_link_has_users(names):
    """None is left out, and a link that goes moves none but its own."""
    people = [f"user{n}@example.org" for n in range(1000)]
    domains = (*names, "c.example")
    counts = [sum(owner(jid, domains) == domain for jid in people) for domain in domains]
    assert min(counts) > 250
    for jid in people:
        if owner(jid, domains) != "c.example":
            assert owner(jid, names) == owner(jid, domains)
