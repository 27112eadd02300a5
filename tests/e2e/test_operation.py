"""What an operator can get wrong or run out of: secrets, addresses, databases, disks, settings."""

import asyncio
import resource

import pytest

from harness.stanzas import amp, message, rule
from harness.waiting import until, wait_for

NODE_ALONE = pytest.mark.once("it is about the node alone")


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test."""
    return workshop.server()


def test_wrong_secret(prosody, workshop):
    """C3: the log names the setting and the remedy, not the secret; the right one works."""
    node = workshop.node(prosody, start=False, secret="wrong-and-private")
    node.spawn()
    node.wait_log("secret")
    assert node.process.returncode() is not None or node.http_status("/readyz") == 503
    assert "wrong-and-private" not in node.log
    if node.process.returncode() is None:
        node.stop()
    else:
        assert node.wait_exit() != 0
    node.write_config(secret="a secret between the two")
    node.start()


def test_unknown_component(prosody, workshop):
    """C1: a component that the server doesn't know is named in the log."""
    node = workshop.node(prosody, start=False, component="nowhere.example.org")
    node.spawn()
    node.wait_log("nowhere.example.org")
    assert node.http_status("/readyz") in (None, 503)


def test_unreachable_server(prosody, workshop):
    """The address is in the log; the node stays alive and links when the server is there."""
    prosody.stop()
    node = workshop.node(prosody, start=False)
    node.spawn()
    node.wait_log(f"127.0.0.1:{prosody.component_port}")
    wait_for(lambda: node.http_status("/healthz") == 200, "/healthz")
    assert node.http_status("/readyz") == 503
    prosody.start()
    wait_for(lambda: node.http_status("/readyz") == 200, "/readyz", 60)


async def test_the_server_comes_back(prosody, workshop, clients):
    """A server that is killed and started again is served, and nothing stored is lost."""
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    id = a.send_xml(message(bob, "x", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(id)
    prosody.kill()
    await until(lambda: node.http_status("/readyz") == 503, "the loss of the link")
    prosody.start()
    await until(lambda: node.http_status("/readyz") == 200, "the link", 60)
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(1) == ["x"]


def refused(node, *words):
    """Start a node that can't run; it ends with an error that says why."""
    node.spawn()
    code = node.wait_exit()
    assert code != 0
    last = node.log[-2000:]
    for word in words:
        assert word in last, f"{word!r} is not in:\n{last}"
    assert "panicked" not in last


@NODE_ALONE
def test_a_file_that_is_no_database(prosody, workshop):
    """The path is named, and the file is left as it is."""
    node = workshop.node(prosody, start=False)
    node.database.write_bytes(b"this is a letter to my aunt, not a database\n" * 100)
    before = node.database.read_bytes()
    refused(node, "amphora.db")
    assert node.database.read_bytes() == before


@NODE_ALONE
def test_a_database_that_is_a_folder(prosody, workshop):
    """The path is named."""
    node = workshop.node(prosody, start=False)
    node.database.mkdir()
    refused(node, "amphora.db")


@NODE_ALONE
def test_a_folder_that_is_not_there(prosody, workshop):
    """The path is named."""
    node = workshop.node(prosody, start=False, url="sqlite:///nowhere/at/all/amphora.db")
    refused(node, "/nowhere/at/all")


@NODE_ALONE
def test_a_second_process_on_one_database(prosody, workshop):
    """Refused, so that ids and order stay one process's; the first goes on."""
    first = workshop.node(prosody)
    second = workshop.node(prosody, start=False, name="n2", url=f"sqlite://{first.database}")
    refused(second, "amphora.db")
    assert first.http_status("/readyz") == 200


@NODE_ALONE
async def test_a_full_disk(prosody, workshop, clients):
    """What can't be written is not called stored: each message arrives, or its sender is told."""
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    first = a.send_xml(message(bob, "first", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(first)
    # no file of the node may grow beyond this; the database's journal soon has to
    unlimited = resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (150_000, unlimited[1]))
    ids = []
    for n in range(300):
        ids.append(a.send_text(bob, f"{n} " + "x" * 2000))
        await a.drain()
    await a.ping()
    await asyncio.to_thread(node.wait_log, "store")
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, unlimited)
    end = a.send_xml(message(bob, "end", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(end, seconds=90)
    assert node.process.returncode() is None
    b = await clients.online(prosody, bob, raw=True, sm=True, acks=True)
    await b.inbox.reply(end, seconds=60)
    for id in ids:
        assert len(b.inbox.with_id(id)) + len(a.inbox.with_id(id)) == 1, (
            f"{id}: {a.inbox.with_id(id)}, arrived {len(b.inbox.with_id(id))} times"
        )
    came = [int(t.partition(" ")[0]) for t in b.inbox.bodies() if t[0].isdigit()]
    assert came == sorted(came)


@NODE_ALONE
def test_unknown_setting(prosody, workshop):
    """The key is named; `check-config` says the same and starts nothing."""
    node = workshop.node(prosody, start=False)
    node.config.write_text(node.config.read_text().replace("shards = 8", "shards = 8\nshrads = 9"))
    refused(node, "shrads")
    code, text = node.command("check-config", "--config", str(node.config))
    assert code != 0 and "shrads" in text


@NODE_ALONE
@pytest.mark.parametrize(
    "key, value, said",
    [
        ("security_level", '"paranoid"', ["security_level", "strict"]),
        ("shards", "0", ["shards"]),
        ("shards", '"many"', ["shards"]),
        ("messages_per_user", "-1", ["messages_per_user"]),
    ],
)
def test_bad_values(prosody, workshop, key, value, said):
    """An error names key, value and what is allowed."""
    node = workshop.node(prosody, start=False)
    lines = node.config.read_text().splitlines()
    lines = [f"{key} = {value}" if line.startswith(f"{key} =") else line for line in lines]
    node.config.write_text("\n".join(lines))
    code, text = node.command("check-config", "--config", str(node.config))
    assert code != 0
    for word in [*said, value.strip('"')]:
        assert word in text, f"{word!r} is not in: {text}"


@NODE_ALONE
def test_a_good_configuration(prosody, workshop):
    """`check-config` is content with what the tests run on, and writes nothing."""
    node = workshop.node(prosody, start=False)
    code, text = node.command("check-config", "--config", str(node.config))
    assert code == 0, text
    assert not node.database.exists()
    assert "a secret between" not in text


@NODE_ALONE
def test_no_such_configuration(prosody, workshop):
    """A file that is not there is named."""
    node = workshop.node(prosody, start=False)
    code, text = node.command("run", "--config", "/nowhere/amphora.toml")
    assert code != 0 and "/nowhere/amphora.toml" in text


@NODE_ALONE
def test_settings_from_the_environment(prosody, workshop):
    """`AMPHORA__SECTION__KEY` wins over the file."""
    node = workshop.node(prosody, start=False, security="nonsense")
    node.spawn(AMPHORA__PROCESSOR__SECURITY_LEVEL="none")
    wait_for(lambda: node.http_status("/readyz") == 200, "/readyz")


@NODE_ALONE
def test_migrate(prosody, workshop):
    """`migrate` makes the tables, twice without harm, and `run` finds them."""
    node = workshop.node(prosody, start=False)
    for _ in range(2):
        code, text = node.command("migrate", "--config", str(node.config))
        assert code == 0, text
    assert node.database.exists()
    node.start()


@NODE_ALONE
def test_help_and_version(prosody, workshop):
    """The command explains itself."""
    node = workshop.node(prosody, start=False)
    code, text = node.command("--help")
    assert code == 0 and "check-config" in text and "migrate" in text
    code, text = node.command("--version")
    assert code == 0 and text.startswith("amphora ")


@NODE_ALONE
async def test_metrics(prosody, workshop, clients):
    """`/metrics` is Prometheus text, and moves when something happens."""
    node = workshop.node(prosody)

    def total():
        lines = node.http_get("/metrics").splitlines()
        values = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        assert all(name.startswith("amphora_") for name, _, _ in values), values
        return sum(float(v) for name, _, v in values if name.partition("{")[0].endswith("_total"))

    before = total()
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    id = a.send_xml(message(bob, "x", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(id)
    assert total() > before
