"""An ejabberd of our own: one Erlang VM in a folder, with free ports, and no epmd."""

import itertools
import json
import os
import socket
import struct
from pathlib import Path

from .erlang import beams, erlang, libraries
from .ports import S2S, free_address, free_port
from .process import Process
from .prosody import COMPONENT, HOST, PASSWORD, SECRET
from .waiting import accepts, wait_for

#: Long enough for a start that repairs tables after a kill.
START = 180

#: A VM that is short of all that costs memory or time at the start: many run at a time.
SMALL = "+K true +S 1:1 +SDcpu 1:1 +SDio 2 +A 1 +sbwt none +sbwtdcpu none +sbwtdio none"

_numbers = itertools.count(1)


class Ejabberd:
    """One server, with the settings of harness.prosody.Prosody: `options` are those of the
    interceptor, under the names that they have in Prosody (amphora_hold = 1, say).

    `archive`: "always", "never" (users may ask for it), or None: no archive at all.
    `unacknowledged`: how many stanzas it keeps at most for a session that acknowledges none.
    `components`: more domains whose components may connect, with their secrets.
    `hosts`: more virtual hosts with the interceptor, with the domains of their nodes.
    `modules`: more modules of the hosts, of ejabberd's or from tests/e2e/modules.
    `sql`: the database where mod_offline stores, instead of mnesia, as ejabberd's options.
    `vm`: the arguments of the Erlang VM.
    `links`: the domains that nodes connect as, the same on all servers of a cluster.
    `cluster`: a server that runs, whose cluster this one joins when it first starts.
    """

    kind = "ejabberd"
    #: What the log says when a component has connected.
    LINKED = "Accepted external component"
    #: What it tells of a message that a session did not acknowledge, by its type, while another is
    #: there; None: nothing, for an unknown type is normal, and goes to that one.
    UNACKNOWLEDGED = {"headline": "service-unavailable", "other": None}

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
        unacknowledged=5000,
        push=False,
        rooms=None,
        components=None,
        hosts=None,
        modules=(),
        sql=None,
        vm=SMALL,
        links=(COMPONENT,),
        cluster=None,
        settings=None,
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
        self.push = push
        self.rooms = rooms
        self.hosts = dict(hosts or {})
        self.modules = list(modules)
        self.sql = dict(sql or {})
        self.vm = vm
        self.links = list(links)
        #: what a test changes in the file: module or section -> its settings, or None: without it
        self.settings = dict(settings or {})
        self.address = free_address()
        self.host = self.address if s2s else HOST
        named = (components or {}).items()
        self.components = {d.replace("{host}", self.host): secret for d, secret in named}
        self.c2s, self.component_port, self.distribution = (free_port() for _ in range(3))
        self.cookie = f"amphora{self.distribution}"
        self._join = cluster
        if cluster:
            self.distribution, self.cookie = cluster.distribution, cluster.cookie
        self.process = None
        self._pending = []
        (self.dir / "mnesia").mkdir(parents=True, exist_ok=True)

    # -- settings

    def _modules(self):
        """The modules and their settings."""
        modules = {
            "mod_adhoc": {},
            "mod_blocking": {},
            "mod_caps": {},
            "mod_carboncopy": {},
            "mod_client_state": {},
            "mod_configure": {},
            "mod_disco": {},
            "mod_ping": {},
            "mod_privacy": {},
            "mod_private": {},
            "mod_register": {"ip_access": "all"},
            # written by the tests behind its back
            "mod_roster": {"use_cache": False},
            "mod_stream_mgmt": {
                "resend_on_timeout": "if_offline",
                "resume_timeout": self.hibernation,
                "max_resume_timeout": max(self.hibernation, 1),
                "max_ack_queue": self.unacknowledged,
            },
            "mod_offline": {
                "db_type": "sql" if self.sql else "mnesia",
                "access_max_user_messages": "max_user_offline_messages",
            },
        }
        if self.archive:
            modules["mod_mam"] = {"default": self.archive}
        if self.push:
            modules["mod_push"] = {}
        if self.rooms:
            modules["mod_muc"] = {"host": self.rooms, "default_room_options": {"mam": False}}
        if self.s2s:
            modules["mod_s2s_dialback"] = {}
        modules |= {f"mod_{name}": {} for name in self.modules}
        modules.update({k: v for k, v in self.settings.items() if k.startswith("mod_")})
        return {name: value for name, value in modules.items() if value is not None}

    def _interceptor(self, *components):
        options = {key.removeprefix("amphora_"): value for key, value in self.options.items()}
        return {"components": list(components), **options}

    def _listeners(self):
        secrets = {**dict.fromkeys(self.links, SECRET), **self.components}
        secrets |= {component: SECRET for component in self.hosts.values()}
        c2s = {
            "ip": "127.0.0.1",
            "port": self.c2s,
            "module": "ejabberd_c2s",
            "access": "all",
            "shaper": "none",
            "max_fsm_queue": 1000000,
        }
        service = {
            "ip": "127.0.0.1",
            "port": self.component_port,
            "module": "ejabberd_service",
            "access": "all",
            "shaper": "none",
            # what waits for the database waits here; at the default the VM kills the link
            "max_fsm_queue": 1000000,
            "global_routes": False,
            "hosts": {d: {"password": s} for d, s in secrets.items()},
        }
        if self.stanza_limit:
            service["max_stanza_size"] = self.stanza_limit
        service |= self.settings.get("service", {})
        c2s |= self.settings.get("c2s", {})
        listeners = [c2s, {k: v for k, v in service.items() if v is not None}]
        if self.s2s:
            listeners.append({"ip": self.host, "port": S2S, "module": "ejabberd_s2s_in"})
        return listeners

    def _config(self):
        config = {
            "hosts": [self.host, *self.hosts],
            "loglevel": self.level,
            "auth_method": "internal",
            "auth_password_format": "plain",
            "listen": self._listeners(),
            "s2s_use_starttls": False,
            "s2s_dns_timeout": "2 seconds",
            "acl": {"admin": {"user": [f"admin@{self.host}"]}},
            "access_rules": {
                "configure": {"allow": "admin"},
                "register": {"allow": "all"},
            },
            "shaper_rules": {"max_user_sessions": 1000, "max_user_offline_messages": "infinity"},
            "modules": self._modules(),
        }
        if self.module:
            links = {self.host: self.links, **{host: [link] for host, link in self.hosts.items()}}
            config["append_host_config"] = {
                host: {"modules": {"mod_amphora": self._interceptor(*names)}}
                for host, names in links.items()
            }
        return config | self.sql | self.settings.get("global", {})

    def write_config(self):
        """Write the settings file. JSON is YAML."""
        (self.dir / "ejabberd.yml").write_text(json.dumps(self._config(), indent=1))

    def reload_config(self):
        """Write the settings anew and have them read, as `ejabberdctl reload_config` does."""
        self.write_config()
        assert self.erl("ejabberd_config:reload()") == "ok"

    # -- life

    @property
    def node_name(self):
        """The name of the Erlang node."""
        return f"ejabberd@{self.address}"

    def start(self):
        """Start it, again on the same data if it ran before, and wait until it listens."""
        self.spawn()
        wait_for(self._is_up, f"ejabberd to listen (see {self.dir})", START)
        if self._join:
            first, self._join = self._join, None
            assert self.erl(f"ejabberd_cluster:join('{first.node_name}')") == "ok"
            wait_for(self._is_up, "ejabberd to listen in the cluster", START)
        if self.archive:
            # in a file, what it takes to add a message grows with those that are there
            self.erl("mnesia:change_table_copy_type(archive_msg, node(), disc_copies)")
        pending, self._pending = self._pending, []
        self._write_accounts(pending)
        return self

    def spawn(self):
        """Start it, and return at once."""
        assert self.process is None, "already running"
        self.write_config()
        (self.dir / "control").unlink(missing_ok=True)
        self.process = Process(
            ["erl", *self._arguments()],
            self.dir / "ejabberd.out",
            self.dir,
            env={
                "HOME": str(self.dir),
                "ERL_LIBS": str(libraries()),
                "EJABBERD_CONFIG_PATH": str(self.dir / "ejabberd.yml"),
                "EJABBERD_LOG_PATH": str(self.dir / "ejabberd.log"),
                "ERL_CRASH_DUMP": os.devnull,
            },
        )
        return self

    def _arguments(self):
        # without epmd, which would outlive the tests; nodes of a cluster have the same port at
        # addresses of their own
        words = f"-noinput {self.vm} -start_epmd false -erl_epmd_port {self.distribution}"
        words += f" -name {self.node_name} -setcookie {self.cookie} -kernel inet_dist_use_interface"
        interface = "{" + self.address.replace(".", ",") + "}"
        mnesia = ["-mnesia", "dir", f'"{self.dir / "mnesia"}"']
        ready = f'harness:start("{self.dir / "control"}").'
        start = ["-ejabberd", "quiet", "true", "-pa", str(beams()), "-s", "ejabberd", "-eval", ready]
        return [*words.split(), interface, *mnesia, *start]

    def _is_up(self):
        code = self.process.returncode()
        assert code is None, f"ejabberd ended with {code}:\n{self.output()[-4000:]}"
        reached = not self.s2s or accepts(S2S, self.host)
        control = (self.dir / "control").exists()
        return control and reached and accepts(self.c2s) and accepts(self.component_port)

    def stop(self):
        """SIGTERM, on which the VM ends in good order."""
        if self.process:
            self.process.terminate()
            self.process = None

    def discard(self):
        """End it for good, as fast as can be."""
        if self.process:
            self.kill()

    def signal(self, number):
        """Any other signal."""
        self.process.signal(number)

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process = None

    def rss_kib(self):
        """Its memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    @property
    def log(self):
        """What ejabberd wrote about itself, over all its lives."""
        path = self.dir / "ejabberd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def output(self):
        """All that is known of it, for a failed test."""
        out = self.dir / "ejabberd.out"
        return self.log + (out.read_text(errors="replace") if out.exists() else "")

    # -- looking in

    def erl(self, text):
        """The value of Erlang expressions inside the server, as text."""
        with socket.create_connection(
            ("127.0.0.1", int((self.dir / "control").read_text())), timeout=60
        ) as connection:
            data = text.rstrip(". \n").encode() + b"."
            connection.sendall(struct.pack(">I", len(data)) + data)
            stream = connection.makefile("rb")
            (size,) = struct.unpack(">I", stream.read(4))
            state, _, value = stream.read(size).decode().partition(" ")
        assert state == "ok", f"{text}: {value}"
        return value

    def account(self, user, contacts=()):
        """An account and its roster; if it doesn't run, they are there after its next start.

        `contacts` maps a bare JID to a subscription ('both', 'from', 'to', 'none').
        """
        self._write_accounts([(user, dict(contacts))])
        return f"{user}@{self.host}"

    def _write_accounts(self, accounts):
        if self.process is None:
            self._pending += accounts
            return
        calls = []
        for user, contacts in accounts:
            roster = "[" + ",".join(f"{{{erlang(j)},{kind}}}" for j, kind in contacts.items()) + "]"
            names = ",".join(map(erlang, (user, self.host, PASSWORD)))
            calls.append(f"harness:account({names},{roster})")
        if calls:
            # kill -9 is to find them on the disk
            self.erl(",".join([*calls, "ok = dets:sync(passwd)", "ok = dets:sync(roster)"]))

    def process_of(self, jid, resource):
        """The process of a session, as an expression that means it for ever."""
        names = ",".join(map(erlang, (jid.partition("@")[0], self.host, resource)))
        return f"list_to_pid({self.erl(f'pid_to_list(ejabberd_sm:get_session_pid({names}))')})"

    def held(self, name):
        """An expression that stands still until `let_go` of that name."""
        free = f"persistent_term:get({{held,{name}}}, false)"
        return f"(fun Held() -> {free} orelse begin timer:sleep(10), Held() end end)()"

    def hold_up(self, name, hook, place, arguments=2):
        """Whoever comes to that place of a hook stands still there."""
        names = ["State", *["_"] * (arguments - 1)]
        handler = f"fun({','.join(names)}) -> {self.held(name)}, State end"
        self.erl(f"ejabberd_hooks:add({hook}, {erlang(self.host)}, {handler}, {place})")

    def let_go(self, name):
        """Whoever stands still for that goes on, and nobody stands still for it any more."""
        self.erl(f"persistent_term:put({{held,{name}}}, true)")

    def is_held(self, process):
        """Does a process stand still?"""
        return self.erl(f"process_info({process}, current_function)") == "{current_function,{timer,sleep,1}}"

    def gate(self, session):
        """A question to ask when that session has become available: does anything live reach it?"""
        user, _, resource = session.partition("@")[0], *session.partition("/")[1:]
        pid = f"ejabberd_sm:get_session_pid({erlang(user)},{erlang(self.host)},{erlang(resource)})"
        ctx = f"mod_amphora:ctx({erlang(self.host)})"
        return lambda: self.erl(f"mod_amphora_gate:is_open({ctx},{pid})") == "true"

    def spool_files(self):
        """The files of the interceptor's spool."""
        return self.dir.rglob("amphora_spool*")

    def spooled(self):
        """All that is written in them."""
        return "".join(path.read_text(errors="replace") for path in self.spool_files())

    def stored_offline(self, user):
        """How many messages mod_offline holds for him."""
        return int(
            self.erl(f"mod_offline:count_offline_messages({erlang(user)},{erlang(self.host)})")
        )

    def people(self, *names, friends=True):
        """New accounts that no other test has, all in each other's roster or in nobody's."""
        number = next(_numbers)
        users = [f"{name}{number}" for name in names]
        jids = [f"{user}@{self.host}" for user in users]
        self._write_accounts(
            [
                (user, {other: "both" for other in jids if other != own} if friends else {})
                for user, own in zip(users, jids)
            ]
        )
        return jids

    async def administer(self, clients, what):
        """Load or unload the interceptor; "restart" it, as `ejabberdctl restart_module` does for new
        code, and wait until the nodes that were there have greeted it again; or "reload" it, as
        `ejabberdctl reload_config` does when a setting of its has changed."""
        host = erlang(self.host)
        links = f"length(mod_amphora_link:links(mod_amphora:ctx({host})))"
        before = self.erl(links) if what == "restart" else "0"
        if what == "reload":
            self.options["amphora_disco_retry"] = self.options.get("amphora_disco_retry", 60) + 1
            self.reload_config()
        if what in ("unload", "restart"):
            self.erl(f"gen_mod:stop_module({host}, mod_amphora)")
        if what in ("load", "restart"):
            self.erl(f"gen_mod:start_module({host}, mod_amphora)")
        wait_for(lambda: before == "0" or self.erl(links) == before, "the nodes to greet again")
