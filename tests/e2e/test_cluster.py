"""Who owns the shards of a database that nodes share over NATS. I1, I4."""

import signal
import socket
import time

import pytest

from harness.database import Database
from harness.members import Member, incarnations, owners
from harness.nats import Nats, make_certificates
from harness.ports import free_port
from harness.waiting import wait_for

SHARDS = 64

pytestmark = pytest.mark.once("nodes, NATS and databases are what is tested")


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def server(request):
    """A database server for the module."""
    server = Database(request.param)
    yield server
    server.stop()


@pytest.fixture
def database(server):
    """The database, empty."""
    return server.empty()


@pytest.fixture
def nats(tmp_path):
    """A NATS server for each test."""
    folder = tmp_path / "nats"
    folder.mkdir()
    nats = Nats(folder).start()
    yield nats
    nats.stop()


@pytest.fixture
def member(tmp_path, database, nats):
    """Makes nodes."""
    made = []

    def make(name, **settings):
        settings = {"shards": SHARDS, "nats": nats.url, **settings}
        node = Member(tmp_path / f"{name}-{len(made)}", name, database, **settings)
        made.append(node)
        return node

    yield make
    for node in made:
        if node.process:
            node.process.signal(signal.SIGCONT)
            node.stop()


def are_divided(database, *nodes):
    """Whether each of these has a share, and nobody else has any."""
    found = owners_or_none(database)
    return set(found) == {node.settings["name"] for node in nodes} and sum(found.values()) == SHARDS


def wait_divided(database, *nodes, seconds=60):
    """Wait for that, and until each of these says so."""
    wait_for(lambda: are_divided(database, *nodes), f"a share for each: {owners_or_none(database)}", seconds)
    for node in nodes:
        wait_for(lambda node=node: node.http_status("/readyz") == 200, "a node that finds all shards")


def test_shards_are_divided_and_given_between_live_nodes(database, member):
    """The first has all; each that comes is given its share, by hand-over and not by force."""
    one = member("n1").start()
    assert owners(database) == {"n1": SHARDS}
    two = member("n2").start()
    wait_divided(database, one, two)
    three = member("n3").start()
    wait_divided(database, one, two, three)
    assert not any(fenced for _, fenced in incarnations(database).values())
    ready = three.http_get("/readyz")
    for line in ("cluster amphora: NATS heard", "node n1 ", "node n2 ", f"of {SHARDS} here\n"):
        assert line in ready, ready
    assert three.metric("amphora_cluster_members") == 3
    wait_for(
        lambda: three.metric("amphora_cluster_shards") == owners(database)["n3"],
        "the metric to follow the database",
    )


def test_a_killed_node_loses_its_shards_after_its_lease(database, member):
    """kill -9: the others take what it had; it joins again under its name."""
    one, two, three = (member(name).start() for name in ("n1", "n2", "n3"))
    wait_divided(database, one, two, three)
    number = incarnations(database)["n2"][0]
    two.kill()
    wait_divided(database, one, three)
    assert incarnations(database)["n2"] == (number, True)
    two.start()
    wait_divided(database, one, two, three)
    assert incarnations(database)["n2"][0] > number


def test_a_node_that_stood_still_is_fenced_and_ends(database, member):
    """SIGSTOP for longer than the lease: what it had is taken; it writes no more and ends with a code
    of its own; a new start joins (I4)."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    two.signal(signal.SIGSTOP)
    wait_divided(database, one)
    two.signal(signal.SIGCONT)
    assert two.wait_exit() == 80
    assert "start it again, and it joins anew" in two.log
    two.start()
    wait_divided(database, one, two)


def test_nothing_is_taken_while_nats_is_away_or_has_just_come_back(database, nats, member):
    """NATS is killed for longer than the lease, and started: each node keeps what it has."""
    one, two, three = (member(name).start() for name in ("n1", "n2", "n3"))
    wait_divided(database, one, two, three)
    before, lanes = database.query("SELECT * FROM shard ORDER BY shard"), incarnations(database)
    for _ in range(2):
        nats.kill()
        for node in (one, two, three):
            wait_for(lambda node=node: node.http_status("/readyz") == 503, "a node that hears nothing")
            assert "NATS not heard" in node.http_get_any("/readyz")
        away = time.monotonic() + 4  # longer than the lease: nobody hears anybody
        wait_for(lambda end=away: time.monotonic() > end, "the lease to pass")
        nats.start()
        for node in (one, two, three):
            wait_for(lambda node=node: node.http_status("/readyz") == 200, "a node that hears again")
    back = time.monotonic() + 4
    wait_for(lambda: time.monotonic() > back, "a lease after NATS has come back")
    assert database.query("SELECT * FROM shard ORDER BY shard") == before
    assert incarnations(database) == lanes


def test_a_node_dies_while_nats_is_away(database, nats, member):
    """Its shards are taken once NATS has been back for a lease."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    nats.kill()
    wait_for(lambda: one.http_status("/readyz") == 503, "a node that hears nothing")
    two.kill()
    nats.start()
    wait_divided(database, one)


def test_nats_loses_its_files(database, nats, member, tmp_path):
    """Nothing of it is needed: the keys are written anew, and nobody loses a shard."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    lanes = incarnations(database)
    nats.kill()
    (nats.dir / "store").rename(tmp_path / "lost")
    nats.start()
    wait_for(lambda: one.http_status("/readyz") == 200, "a node that hears again")
    wait_divided(database, one, two)
    assert incarnations(database) == lanes
    two.kill()
    wait_divided(database, one)


def test_a_stop_gives_shards_away_first(database, member):
    """SIGTERM: nothing is left for others to take, and no shard is without an owner meanwhile."""
    one, two, three = (member(name).start() for name in ("n1", "n2", "n3"))
    wait_divided(database, one, two, three)
    for node in (one, two, three):
        takes = sum(other.metric('amphora_cluster_moves_total{kind="take"}') or 0 for other in (one, two, three))
        rest = [other for other in (one, two, three) if other is not node]
        assert node.stop() == 0
        assert are_divided(database, *rest), owners(database)
        node.start()
        wait_divided(database, one, two, three)
        after = sum(other.metric('amphora_cluster_moves_total{kind="take"}') or 0 for other in rest)
        assert after <= takes, "shards were taken that should have been given"
    assert "gave shards" in one.log


def test_the_last_node_stops_and_comes_back(database, member):
    """There is nobody to give shards to: they are taken by whoever comes."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    assert two.stop() == 0 and one.stop() == 0
    assert owners(database) == {None: SHARDS}
    two.start()
    wait_divided(database, two)


def test_drain_by_hand(database, member):
    """`amphora drain`: the node goes on, without shards, until it is told otherwise."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    code, output = one.drain()
    assert (code, owners(database)) == (0, {"n2": SHARDS}), output
    assert output == "drained; 0 shards here; nodes of 'amphora': n1, n2\n"
    assert one.http_status("/readyz") == 503 and one.http_status("/healthz") == 200
    wait_for(lambda: "node n1 0.1.0, draining" in two.http_get("/readyz"), "the other to know of it")
    code, output = two.drain()
    assert code == 1 and f"{SHARDS} shards are left" in output, output
    assert two.drain("--cancel")[0] == 0
    # A node that drains is better than none.
    two.kill()
    wait_for(lambda: owners(database) == {"n1": SHARDS}, "the only one left to take all")
    code, output = one.drain("--cancel")
    assert code == 0 and "takes shards again" in output
    wait_divided(database, one)


def test_a_node_alone_has_nothing_to_drain(workshop_node):
    """Without `[cluster]` the command says so."""
    code, output = workshop_node.command("drain", "--config", str(workshop_node.config))
    assert code == 1 and "this node is alone" in output, output


@pytest.fixture
def workshop_node(tmp_path):
    """A node that is alone, with no server."""
    node = Member(tmp_path / "alone", "n1", type("None", (), {"url": ""}), nats="")
    node.settings["url"] = f"sqlite://{node.dir}/amphora.db"
    node.write_config()
    text = node.config.read_text().replace('nats = [""]', "nats = []")
    text = text.replace('[node]\n', f'[node]\ncontrol = "{node.control}"\n')
    node.config.write_text(text)
    yield node.start()
    node.stop()


def test_a_node_with_other_shards_is_refused(database, member):
    """The database says so, and where that is another one, the other nodes' keys do."""
    one = member("n1").start()
    two = member("n2", shards=SHARDS * 2).spawn()
    assert two.wait_exit() == 69
    assert "set processor.shards = 64" in two.log
    database.query("CREATE DATABASE elsewhere", database="")
    if database.kind == "postgres":
        database.query("ALTER DATABASE elsewhere OWNER TO amphora", database="")
    three = member("n3", shards=SHARDS * 2)
    three.write_config(url=database.url.removesuffix("amphora") + "elsewhere")
    three.spawn()
    assert three.wait_exit() == 77
    assert "'n1' runs in it, with 64 shards, and this one has 128" in three.log
    database.query("DROP DATABASE elsewhere", database="")
    assert owners(database) == {"n1": SHARDS} and one.http_status("/readyz") == 200


def test_a_successor_of_the_same_name(database, member):
    """It has the shards of the first at once, which ends and must not come back."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    successor = member("n2").start()
    assert two.wait_exit() == 79
    wait_divided(database, one, successor)


def test_all_nodes_start_at_once(database, member):
    """In a new database: one makes the tables, the others wait for it."""
    nodes = [member(f"n{n}").spawn() for n in range(1, 4)]
    wait_divided(database, *nodes)
    assert all(node.process.returncode() is None for node in nodes)


def owners_or_none(database):
    """The same of a database that has no tables yet."""
    try:
        return owners(database)
    except AssertionError:
        return {}


def test_a_node_starts_without_nats(database, nats, member):
    """It keeps the shards of its predecessor, and joins when NATS is there."""
    one, two = (member(name).start() for name in ("n1", "n2"))
    wait_divided(database, one, two)
    share = owners(database)["n2"]
    nats.kill()
    two.kill()
    two.spawn()
    two.wait_log("no NATS server answers")
    wait_for(lambda: f"shards: {share} of " in two.http_get_any("/readyz"), "its shards")
    nats.start()
    wait_divided(database, one, two)
    assert owners(database)["n2"] == share


def test_nats_servers_that_are_away_are_passed_over(database, nats, member):
    """Wherever a node begins, it finds the one that is there, and does not go on alone before."""
    both = f'nats://127.0.0.1:{free_port()}", "{nats.url}'
    nodes = [member(f"n{n}", nats=both).start() for n in range(1, 6)]
    wait_divided(database, *nodes)
    assert not [node.settings["name"] for node in nodes if "no NATS server answers" in node.log]


LINK = """
[[servers]]
address = "127.0.0.1:{port}"
component = "amp.example.org"
secret = "s"
hosts = ["example.org"]
"""


def test_a_node_of_no_use_has_no_links(database, nats, member):
    """Without NATS and without shards it can do nothing for a server: that uses other nodes' links. With
    shards it can."""
    one = member("n1").start()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        two = member("n2", more=LINK.format(port=server.getsockname()[1])).spawn()
        link, _ = server.accept()
        wait_for(lambda: are_divided(database, one, two), "a share for each")
        # which it has to know before it can give it away
        wait_for(lambda: two.metric("amphora_cluster_shards") == owners(database)["n2"], "that it knows")
        link.settimeout(30)
        assert link.recv(1000).startswith(b"<?xml")
        assert two.drain()[0] == 0
        nats.kill()
        assert link.recv(1000) == b"", "the link is closed"
        two.wait_log("no links until it does")
        nats.start()
        server.accept()[0].close()


def test_tls_and_who_may_come_in(database, member, tmp_path):
    """TLS with certificates of both sides; a user with a password; and what it looks like when not."""
    folder = tmp_path / "tls"
    folder.mkdir()
    paths = make_certificates(folder)
    tls = (
        f'tls {{ cert_file: "{paths["server.pem"]}", key_file: "{paths["server.key"]}",'
        f' ca_file: "{paths["ca.pem"]}", verify: true }}\n'
        "authorization { user: amphora, password: hunter2 }"
    )
    nats = Nats(folder, more=tls, scheme="tls").start()
    try:
        trust = f'root_certificate = "{paths["ca.pem"]}"\n'
        own = f'certificate = "{paths["client.pem"]}"\nkey = "{paths["client.key"]}"\n'
        url = nats.url.replace("://", "://amphora:hunter2@")
        one = member("n1", nats=url, more=trust + own).start()
        assert owners(database) == {"n1": SHARDS}
        for settings, word in (
            ({"nats": nats.url, "more": trust + own}, "NATS refuses this node"),
            ({"nats": url, "more": ""}, "there is no TLS with NATS"),
        ):
            two = member("n2", **settings).spawn()
            assert two.wait_exit() == 77
            assert word in two.log and "hunter2" not in two.log, two.log
        assert "hunter2" not in one.log
        assert one.stop() == 0
    finally:
        nats.stop()
