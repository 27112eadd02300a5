"""Three NATS servers, one of which is parted from the others: it answers its own clients, but keeps nothing for
them. The nodes on it go to another. I1, I4."""

import pytest

from harness.database import Database
from harness.members import incarnations
from harness.nats_cluster import NatsCluster
from harness.waiting import wait_for
from test_cluster import wait_divided

LEASE = "6s"

pytestmark = pytest.mark.once("nodes, NATS and databases are what is tested")


@pytest.fixture(scope="module")
def server():
    """A database server for the module."""
    server = Database("postgres")
    yield server
    server.stop()


@pytest.fixture
def database(server):
    """The database, empty."""
    return server.empty()


@pytest.fixture
def nats(tmp_path):
    """Three NATS servers."""
    nats = NatsCluster(tmp_path)
    yield nats.start()
    nats.stop()


@pytest.mark.parametrize("how", ["cut", "hush"])
def test_a_nats_server_is_parted_from_the_others(workshop, database, nats, how):
    """Nobody is taken for dead. A node that starts meanwhile joins, wherever it begins; one that is killed is
    missed."""
    made = {name: workshop.member(database, nats, name, shards=64, lease=LEASE) for name in ("n1", "n2", "n3")}
    nodes = list(made.values())
    wait_divided(database, *nodes)
    busy = max(range(3), key=lambda number: len(nats.clients(number)))
    there = set(nats.clients(busy))
    assert there
    before = incarnations(database)
    nats.part(busy, how)
    wait_for(lambda: not there & set(nats.clients(busy)), f"{there} to leave server {busy}", 30)
    wait_divided(database, *nodes)
    assert incarnations(database) == before
    for name in ("n1", "n2"):  # it begins at any server
        assert made[name].stop() == 0
        made[name].start()
        wait_divided(database, *nodes)
    made["n3"].kill()
    wait_divided(database, made["n1"], made["n2"])
    nats.mend(busy)
    made["n3"].start()
    wait_divided(database, *nodes)
    for node in nodes:  # before the NATS that they are in
        node.stop()
