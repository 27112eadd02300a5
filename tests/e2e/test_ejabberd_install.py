"""The two ways to install the interceptor that deploy/ejabberd/README.md describes, with
`ejabberdctl` as the package has it."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness.erlang import INTERCEPTOR, compile_erlang
from harness.ports import free_port
from harness.process import Process
from harness.prosody import COMPONENT, HOST, PASSWORD, SECRET
from harness.stanzas import amp, message, rule
from harness.steps import all_stored
from harness.waiting import PATIENCE, accepts, wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="ejabberdctl becomes the user ejabberd"),
    pytest.mark.only("ejabberd", "it is about ejabberd"),
]

START = 120


class Installation:
    """An ejabberd as `ejabberdctl` starts it, in folders that belong to its user."""

    host = HOST

    def __init__(self):
        # the user ejabberd can't pass through pytest's own folders
        self.dir = Path(tempfile.mkdtemp(prefix="ejabberdctl-"))
        self.dir.chmod(0o755)
        self.conf, self.spool, self.logs = (self.dir / name for name in ("conf", "spool", "logs"))
        for folder in (self.conf, self.spool, self.logs):
            folder.mkdir()
        self.modules = self.spool / "modules"
        self.sources = self.modules / "sources" / "mod_amphora"
        self.c2s, self.component_port, self.distribution = (free_port() for _ in range(3))
        self.process = None
        (self.conf / "inetrc").touch()
        self.options()
        self.write({})

    def options(self, *more):
        """ejabberdctl.cfg, with these lines as well."""
        lines = [
            f"ERL_DIST_PORT={self.distribution}",  # and so no epmd
            "INET_DIST_INTERFACE=127.0.0.1",
            f"CONTRIB_MODULES_PATH={self.modules}",
            *more,
        ]
        (self.conf / "ejabberdctl.cfg").write_text("\n".join(lines) + "\n")

    def write(self, modules):
        """ejabberd.yml, with these modules besides those that it has anyway."""
        listeners = [
            {"ip": "127.0.0.1", "port": self.c2s, "module": "ejabberd_c2s"},
            {
                "ip": "127.0.0.1",
                "port": self.component_port,
                "module": "ejabberd_service",
                "max_fsm_queue": 100000,
                "global_routes": False,
                "hosts": {COMPONENT: {"password": SECRET}},
            },
        ]
        common = {"mod_disco": {}, "mod_offline": {}, "mod_ping": {}, "mod_roster": {}}
        common["mod_stream_mgmt"] = {"resend_on_timeout": "if_offline"}
        settings = {"hosts": [HOST], "listen": listeners, "modules": common | modules}
        (self.conf / "ejabberd.yml").write_text(json.dumps(settings, indent=1))

    def start(self):
        """Start it, and wait until it listens."""
        for folder, _, _ in os.walk(self.dir):
            shutil.chown(folder, "ejabberd", "ejabberd")
        self.process = Process([*self._ctl(), "foreground"], self.dir / "out", self.dir)
        wait_for(lambda: accepts(self.component_port), f"ejabberd (see {self.dir})", START)
        self.ctl("started")

    def _ctl(self):
        folders = ["-d", self.conf, "-s", self.spool, "-l", self.logs]
        return ["ejabberdctl", *map(str, folders)]

    def ctl(self, *arguments):
        """What `ejabberdctl` prints."""
        done = subprocess.run(
            [*self._ctl(), *arguments], capture_output=True, text=True, timeout=START, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.output()[-3000:]
        return done.stdout

    def output(self):
        """All that is known of it."""
        names = [self.dir / "out", self.logs / "ejabberd.log"]
        return "".join(name.read_text(errors="replace") for name in names if name.exists())

    def people(self, *names):
        """These accounts."""
        for name in names:
            self.ctl("register", name, HOST, PASSWORD)
        return [f"{name}@{HOST}" for name in names]

    def end(self):
        """Stop it, and remove all of it."""
        if self.process and self.process.returncode() is None:
            self.ctl("stop")
            self.process.wait(PATIENCE)
        shutil.rmtree(self.dir)


@pytest.fixture
def installation():
    """One that does not run yet."""
    made = Installation()
    yield made
    made.end()


@pytest.fixture(params=["module_install", "beams"])
def installed(installation, request):
    """One with the interceptor."""
    if request.param == "beams":
        folder = installation.dir / "amphora"
        compile_erlang(folder)
        installation.options(f'ERL_OPTIONS="-pa {folder}"')
        installation.write({"mod_amphora": {"components": [COMPONENT]}})
        installation.start()
        return installation
    # what a package would, without the programs that compile it by hand
    shutil.copytree(INTERCEPTOR, installation.sources)
    installation.start()
    assert "mod_amphora" in installation.ctl("modules_available")
    installation.write({"mod_amphora": {"components": [COMPONENT]}})
    installation.ctl("module_install", "mod_amphora")
    assert "mod_amphora" in installation.ctl("modules_installed")
    return installation


async def test_a_message_is_stored_and_delivered(workshop, installed, clients):
    """It works as it was installed, and so it does after the next start. Then the server goes on without
    it: mod_amphora_unspool, which was installed with it, gives mod_offline what was held."""
    node = workshop.node(installed, security="none")
    alice, bob = installed.people("alice", "bob")
    a = await clients.online(installed, alice, "desk", raw=True)
    await all_stored(a, bob, "first")
    told = a.send_xml(message(bob, "no", payload=amp(rule("alert", "deliver", "stored"))))
    assert (await a.inbox.reply(told)).status == "alert"
    await a.leave()
    installed.ctl("stop")
    installed.process.wait(PATIENCE)
    installed.start()
    wait_for(lambda: node.http_status("/readyz") == 200, "the node to be linked again")
    b = await clients.online(installed, bob)
    assert await b.inbox.body_count(1) == ["first"]
    await b.leave()
    node.stop()
    a = await clients.online(installed, alice, "desk", raw=True)
    a.send_text(bob, "held")
    await a.ping()
    installed.write({"mod_amphora_unspool": {}})
    installed.ctl("reload_config")
    wait_for(lambda: "1 messages moved to the offline messages" in installed.output(), "the log to say so")
    b = await clients.online(installed, bob)
    assert await b.inbox.body_count(1) == ["held"]


async def test_module_uninstall(workshop, installation, clients):
    """mod_offline stores again; what a node has is delivered when the interceptor is back."""
    shutil.copytree(INTERCEPTOR, installation.sources)
    installation.start()
    installation.write({"mod_amphora": {"components": [COMPONENT]}})
    installation.ctl("module_install", "mod_amphora")
    workshop.node(installation, security="none")
    alice, bob = installation.people("alice", "bob")
    a = await clients.online(installation, alice, "desk", raw=True)
    await all_stored(a, bob, "the node has it")
    installation.write({})
    installation.ctl("module_uninstall", "mod_amphora")
    a.send_text(bob, "mod_offline has it")
    await a.ping()
    installation.write({"mod_amphora": {"components": [COMPONENT]}})
    installation.ctl("module_install", "mod_amphora")
    b = await clients.online(installation, bob)
    assert await b.inbox.body_count(2) == ["the node has it", "mod_offline has it"]
