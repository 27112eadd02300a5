"""The interceptors and the node count the hash for a link alike ("Several links" in docs/intercept.md)."""

import subprocess

import pytest

from harness.erlang import beams
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
for line in io.lines(arg[2]) do
	local bare, component = line:match("^([^\\t]*)\\t([^\\t]*)");
	print(links.weight(bare, component).."\\t"..links.of(bare).component);
end
"""


def test_the_vectors_are_right():
    """What the tests themselves count."""
    assert len(VECTORS) > 50
    for jid, component, number in VECTORS:
        assert weight(jid, component) == int(number), (jid, component)


#: the same of the other interceptor
ERLANG = """
lists:foreach(fun(Line) ->
    [Bare, Component | _] = binary:split(Line, <<"\t">>, [global]),
    Links = [{link, {<<"example.org">>, C}, self(), 1, <<>>, <<>>, 1, [], []} || C <- [<<"amp3.example.org">>, <<"amp2.example.org">>]],
    {_, Chosen} = element(2, mod_amphora_link:of_user(#{}, Bare, Links)),
    io:format("~b\t~s~n", [mod_amphora_link:weight(Bare, Component), Chosen])
end, begin {ok, File} = file:read_file(hd(init:get_plain_arguments())), binary:split(File, <<"\n">>, [global, trim]) end),
halt().
"""


def run_prosody(folder):
    """Lines of the interceptor's own file."""
    script = folder / "weights.lua"
    script.write_text(LUA)
    return ["lua5.4", str(script), str(MODULE / "amphora_links.lib.lua"), str(folder / "input")]


def run_ejabberd(folder):
    """Lines of the interceptor's own module."""
    return ["erl", "-noinput", "-pa", str(beams()), "-eval", ERLANG, "-extra", str(folder / "input")]


def test_an_interceptor(kind, tmp_path):
    """Its weights, and its choice among the links that are there."""
    text = "".join(f"{jid}\t{component}\n" for jid, component, _ in VECTORS)
    (tmp_path / "input").write_text(text, encoding="utf-8")
    command = {"prosody": run_prosody, "ejabberd": run_ejabberd}[kind](tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
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
