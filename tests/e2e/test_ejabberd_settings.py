"""What ejabberd's own settings may break is said when the interceptor starts, with the remedy."""

import pytest

from harness.prosody import COMPONENT
from harness.stanzas import message
from harness.steps import all_stored
from harness.waiting import until, wait_for

pytestmark = pytest.mark.only("ejabberd", "it is about ejabberd's settings")


def warnings(server):
    """What the interceptor warned about."""
    server.erl('logger:warning("all is written")')
    wait_for(lambda: "all is written" in server.log, "the log to be written")
    lines = [line for line in server.log.splitlines() if "[warning]" in line]
    return [line for line in lines if "mod_amphora of" in line]


@pytest.mark.parametrize(
    "settings, named, remedy",
    [
        ({"service": {"max_fsm_queue": None}}, "max_fsm_queue", "max_fsm_queue: 100000"),
        ({"service": {"global_routes": None}}, "global_routes", "global_routes: false"),
        ({"mod_stream_mgmt": {}}, "resend_on_timeout", "resend_on_timeout: if_offline"),
        ({"mod_stream_mgmt": None}, "mod_stream_mgmt", "mod_stream_mgmt: {resend_on_timeout"),
        (
            {"mod_stream_mgmt": {"resend_on_timeout": "if_offline", "max_ack_queue": 100}},
            "max_ack_queue",
            "max_ack_queue: 200",
        ),
        ({"c2s": {"max_fsm_queue": 1000}}, "max_fsm_queue", "max_fsm_queue: 5000"),
    ],
    ids=["service queue", "global routes", "resend", "no stream management", "ack queue", "c2s queue"],
)
async def test_a_setting_that_breaks_something(workshop, settings, named, remedy):
    """It is named, with what to write instead, and nothing else is."""
    server = workshop.server(settings=settings, components={"other.example.org": "x"})
    (warning,) = warnings(server)
    assert named in warning and remedy in warning, warning


async def test_settings_that_are_right(workshop):
    """Nothing is warned about, after a reload neither."""
    server = workshop.server(components={"other.example.org": "x"})
    server.reload_config()
    assert warnings(server) == []


async def test_no_listener_for_the_component(workshop):
    """No node could ever connect: said at the start."""
    server = workshop.server(options={"amphora_components": ["elsewhere.example.org"]})
    (warning,) = warnings(server)
    assert "no ejabberd_service listener takes elsewhere.example.org" in warning


@pytest.mark.parametrize("components, why", [([], "must name a component"), (["example.org"], "is a virtual host")])
async def test_no_component_at_all(workshop, components, why):
    """ejabberd does not start, and says why."""
    server = workshop.server(start=False, options={"amphora_components": components})
    server.spawn()
    wait_for(lambda: server.process.returncode() is not None, "the end of ejabberd")
    assert why in server.output()


async def test_an_option_of_the_wrong_kind(workshop):
    """ejabberd does not start, and names option and value."""
    server = workshop.server(start=False, options={"amphora_disco_cache": 24 * 60 * 60 + 1})
    server.spawn()
    wait_for(lambda: server.process.returncode() is not None, "the end of ejabberd")
    assert "disco_cache" in server.output()


async def test_mod_offline_stays_out_of_the_way(workshop, clients):
    """After a reload that starts it anew, it still neither stores nor delivers (O2)."""
    server = workshop.server()
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    await all_stored(a, bob, "before")
    server.settings["mod_offline"] = {"db_type": "mnesia", "store_empty_body": True}
    server.reload_config()
    await all_stored(a, bob, "after")
    assert server.stored_offline(bob.partition("@")[0]) == 0
    assert node.stored(bob) == 2
    b = await clients.online(server, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["before", "after", "end"]


async def test_options_that_change(workshop, clients):
    """A reload of the configuration takes them on, and disturbs neither node nor messages."""
    # with the journal it would be there at once
    server = workshop.server(options={"amphora_hold": 600, "amphora_journal": False})
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    node.stop()
    a.send_xml(message(bob, "held"))
    await a.ping()
    assert "held" not in server.spooled()
    server.options["amphora_hold"] = 0
    server.reload_config()
    await until(lambda: "held" in server.spooled(), "it to be in the spool")


async def test_two_hosts_with_an_interceptor_each(workshop, clients):
    """Each has its own nodes, or the same; one that is stopped leaves the other alone."""
    server = workshop.server(hosts={"example.com": COMPONENT})
    node = workshop.node(server, others=', "example.com"')
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    server.erl('gen_mod:stop_module(<<"example.com">>, mod_amphora)')
    await all_stored(a, bob, "stored")
    assert node.stored(bob) == 1
