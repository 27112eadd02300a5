"""A Prosody of our own: a folder, free ports, accounts and rosters written as files."""

import itertools
import os
import re
import shutil
from pathlib import Path

from .ports import S2S, free_address, free_port
from .process import Process
from .stanzas import COMMANDS, new_id
from .waiting import accepts, wait_for

HOST = "example.org"
COMPONENT = "amp.example.org"
SECRET = "a secret between the two"
PASSWORD = "pw"

ROOT = Path(__file__).resolve().parents[3]
MODULE = ROOT / "deploy" / "prosody"
TESTS = ROOT / "tests" / "e2e" / "modules"

#: a server that talks to nobody, and one that is found by its address (dialback, no TLS)
ALONE = """s2s_ports = {{ }}
modules_disabled = {{ "tls", "s2s" }}"""
FOUND = """s2s_ports = {{ {port} }}
s2s_interfaces = {{ "{host}" }}
s2s_require_encryption = false
s2s_secure_auth = false
modules_disabled = {{ "tls" }}"""

_numbers = itertools.count(1)

CONFIG = """
pidfile = "{dir}/prosody.pid"
data_path = "{dir}/data"
certificates = "{dir}/certs"
run_as_root = true
daemonize = false
plugin_paths = {{ "{module}", "{tests}" }}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
{s2s}
http_ports = {{ }}
https_ports = {{ }}
component_ports = {{ {component_port} }}
component_interfaces = {{ "127.0.0.1" }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
authentication = "internal_plain"
archive_expires_after = "1w"
component_conflict_resolve = "kick_old"
admins = {{ "admin@{host}" }}
log = {{ {{ levels = {{ min = "{level}" }}, to = "file", filename = "{dir}/prosody.log" }} }}
modules_enabled = {{
  "disco", "roster", "saslauth", "blocklist", "bookmarks", "carbons", "mam", "pep", "private",
  "smacks", "csi_simple", "ping", "register", "time", "uptime", "version", "vcard_legacy",
  "admin_adhoc", "posix",{dialback}
}}
smacks_hibernation_time = {hibernation}
smacks_max_queue_size = {unacknowledged}
{options}
VirtualHost "{host}"
{host_modules}
{host_options}
{extra}
{links}
"""


def lua(value):
    """A Python value as a Lua literal."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "{ " + ", ".join(lua(item) for item in value) + " }"


class Prosody:
    """One server. `options` are those of the virtual host (amphora_hold = 1, say).

    `s2s`: it has an address of its own, which is its host too, and other servers reach it.
    `archive`: "always", "never" (users may ask for it), or None: no archive at all.
    `unacknowledged`: how many stanzas it keeps at most for a session that acknowledges none.
    `push`: it pushes to the devices of its users. `rooms`: a domain with chat rooms.
    `components`: more domains whose components may connect, with their secrets.
    `hosts`: more virtual hosts with the interceptor, with the domains of their nodes.
    `modules`: more modules of the host, of the server's or from tests/e2e/modules.
    `links`: the domains that nodes connect as.
    `extra`: more configuration, in which {host} is the host.
    """

    kind = "prosody"
    #: What the log says when a component has connected.
    LINKED = "successfully authenticated"
    #: What it tells of a message that a session did not acknowledge, by its type, while another is
    #: there.
    UNACKNOWLEDGED = dict.fromkeys(("headline", "other"), "recipient-unavailable")

    def __init__(
        self,
        folder,
        *,
        module=True,
        hibernation=300,
        options=None,
        level="info",
        stanza_limit=None,
        s2s=False,
        archive="always",
        unacknowledged=500,
        push=False,
        rooms=None,
        components=None,
        hosts=None,
        modules=(),
        links=(COMPONENT,),
        extra="",
    ):
        self.dir = Path(folder)
        self.module = module
        self.hibernation = hibernation
        self.options = dict(options or {})
        self.level = level
        self.stanza_limit = stanza_limit
        self.s2s = s2s
        self.archive = archive
        self.unacknowledged = unacknowledged
        self.modules = [*modules, *["cloud_notify"] * push]
        self.links = list(links)
        # as yet with {host} in it
        self.extra = "\n".join([extra, *self._more(rooms, components or {}, hosts or {})])
        self.host = free_address() if s2s else HOST
        self.c2s = free_port()
        self.component_port = free_port()
        self.process = None
        for name in ("data", "certs"):
            (self.dir / name).mkdir(parents=True, exist_ok=True)

    @staticmethod
    def _more(rooms, components, hosts):
        """The sections of further domains."""
        if rooms:
            yield f'Component "{rooms}" "muc"'
        for host, component in hosts.items():
            yield f'VirtualHost "{host}"\n  modules_enabled = {{ "amphora" }}'
            yield f'  amphora_components = {{ "{component}" }}'
            if component != COMPONENT:
                yield f'Component "{component}"\n  component_secret = "{SECRET}"'
        for domain, secret in components.items():
            yield f'Component "{domain}"\n  component_secret = "{secret}"'

    @property
    def log(self):
        """What Prosody wrote about itself, over all its lives."""
        path = self.dir / "prosody.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _write_config(self):
        options = dict(self.options)
        if self.module:
            options.setdefault("amphora_components", self.links)
        if self.archive is None:
            options["modules_disabled"] = ["mam"]
        elif self.archive == "never":
            options["default_archive_policy"] = False
        text = CONFIG.format(
            dir=self.dir,
            module=MODULE,
            tests=TESTS,
            dialback=' "dialback",' if self.s2s else "",
            s2s=(FOUND if self.s2s else ALONE).format(port=S2S, host=self.host),
            c2s=self.c2s,
            component_port=self.component_port,
            level=self.level,
            hibernation=self.hibernation,
            unacknowledged=self.unacknowledged,
            options=f"component_stanza_size_limit = {self.stanza_limit}" if self.stanza_limit else "",
            host=self.host,
            host_modules=f"  modules_enabled = {lua(['amphora'] * self.module + self.modules)}",
            host_options="\n".join(f"  {key} = {lua(value)}" for key, value in options.items()),
            extra=self.extra.replace("{host}", self.host),
            links="\n".join(f'Component "{d}"\n  component_secret = "{SECRET}"' for d in self.links),
        )
        (self.dir / "prosody.cfg.lua").write_text(text)

    def start(self):
        """Start it, again on the same data if it ran before, and wait until it listens."""
        assert self.process is None, "already running"
        self._write_config()
        binary = shutil.which("prosody") or "/usr/bin/prosody"
        self.process = Process(
            [binary, "-F", "--config", str(self.dir / "prosody.cfg.lua")],
            self.dir / "prosody.out",
            self.dir,
        )
        wait_for(self._is_up, f"Prosody to listen (see {self.dir}/prosody.log)")
        return self

    def _is_up(self):
        code = self.process.returncode()
        assert code is None, f"Prosody ended with {code}:\n{self.output()}"
        reached = not self.s2s or accepts(S2S, self.host)
        return reached and accepts(self.c2s) and accepts(self.component_port)

    def stop(self):
        """SIGTERM, as a system would."""
        if self.process:
            self.process.terminate()
            self.process = None

    def discard(self):
        """End it for good."""
        self.stop()

    def signal(self, number):
        """Any other signal."""
        self.process.signal(number)

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process = None

    def output(self):
        """All that is known of it, for a failed test."""
        out = self.dir / "prosody.out"
        return self.log + (out.read_text(errors="replace") if out.exists() else "")

    def rss_kib(self):
        """Its memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def account(self, user, contacts=()):
        """Write an account and its roster; both may be written while Prosody runs.

        `contacts` maps a bare JID to a subscription ('both', 'from', 'to', 'none').
        """
        self._write("accounts", user, f'return {{ ["password"] = "{PASSWORD}"; }};\n')
        contacts = dict(contacts)
        lines = "".join(
            f'["{jid}"] = {{ ["subscription"] = "{kind}"; ["groups"] = {{}}; }};\n'
            for jid, kind in contacts.items()
        )
        self._write(
            "roster", user, f'return {{ [false] = {{ ["version"] = 1; }};\n{lines} }};\n'
        )
        return f"{user}@{self.host}"

    def _write(self, store, user, text):
        folder = self.dir / "data" / self.host.replace(".", "%2e") / store
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{user}.{os.getpid()}"
        temporary.write_text(text)
        temporary.rename(folder / f"{user}.dat")

    def gate(self, session):
        """A question to ask when that session has become available: does anything live reach it?"""
        opened = f"{session}: \\d+ stored messages were handed over"
        before = len(re.findall(opened, self.log))
        return lambda: len(re.findall(opened, self.log)) > before

    def spool_files(self):
        """The files of the interceptor's spool."""
        return (self.dir / "data").rglob("amphora_spool*")

    def spooled(self):
        """All that is written in them."""
        return "".join(path.read_text(errors="replace") for path in self.spool_files())

    def stored_offline(self, user):
        """How many messages Prosody's own offline storage holds for him."""
        path = self.dir / "data" / self.host.replace(".", "%2e") / "offline" / f"{user}.list"
        return path.read_text().count("item({") if path.exists() else 0

    def people(self, *names, friends=True):
        """New accounts that no other test has, all in each other's roster or in nobody's."""
        number = next(_numbers)
        users = [f"{name}{number}" for name in names]
        for user in users:
            others = {f"{other}@{self.host}": "both" for other in users if other != user}
            self.account(user, others if friends else {})
        return [f"{user}@{self.host}" for user in users]

    async def administer(self, clients, what):
        """Load, unload or reload the interceptor with an administrator's ad-hoc command. To "restart"
        it is to reload it: that brings new code in, and keeps its state."""
        what = "reload" if what == "restart" else what
        self.account("admin")
        client = await clients.login(self, f"admin@{self.host}", new_id("admin"), raw=True)
        node = f"http://prosody.im/protocol/modules#{what}"
        started = await client.iq(
            f"<command xmlns='{COMMANDS}' node='{node}' action='execute'/>", type="set", to=self.host
        )
        session = started.find(f"{{{COMMANDS}}}command").get("sessionid")
        field = "module" if what == "load" else "modules"
        done = await client.iq(
            f"<command xmlns='{COMMANDS}' node='{node}' action='complete' sessionid='{session}'>"
            f"<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>{node}</value>"
            f"</field><field var='{field}'><value>amphora</value></field></x></command>",
            type="set",
            to=self.host,
        )
        note = done.find(f"{{{COMMANDS}}}command/{{{COMMANDS}}}note")
        assert note.get("type") == "info" and "rror" not in (note.text or ""), note.text
        await client.leave()
