"""An ejabberd of our own: one Erlang VM in the foreground, without the package's service."""

import os
from pathlib import Path

from harness.ports import free_port
from harness.process import Process
from harness.prosody import HOST, PASSWORD, SECRET
from harness.waiting import accepts, wait_for
from load import LOAD
from postgres import USER

#: Long enough for a start that repairs tables after a kill.
START = 180

CONFIG = """
hosts: ["{host}"]
loglevel: warning
auth_method: internal
auth_password_format: plain
listen:
  - ip: "127.0.0.1"
    port: {c2s}
    module: ejabberd_c2s
    access: all
    shaper: none
    max_fsm_queue: 1000000
  - ip: "127.0.0.1"
    port: {component_port}
    module: ejabberd_service
    access: all
    shaper: none
    # what waits for the database waits here; at the default of 10,000 the VM kills the link
    max_fsm_queue: 1000000
    global_routes: false
    hosts: {{ "{load}": {{ password: "{secret}" }} }}
shaper_rules:
  max_user_offline_messages: infinity
{sql}
modules:
  mod_disco: {{}}
  mod_ping: {{}}
  mod_roster: {{}}
  mod_carboncopy: {{}}
  mod_stream_mgmt: {{ max_ack_queue: infinity, resend_on_timeout: if_offline }}
  mod_offline: {{ db_type: {db_type}, access_max_user_messages: max_user_offline_messages }}
"""

SQL = """
sql_type: pgsql
sql_server: "127.0.0.1"
sql_port: {port}
sql_database: ejabberd
sql_username: {user}
sql_password: ""
"""

#: Registers the accounts and says that all is up.
READY = """
lists:foreach(fun(U) -> ejabberd_auth:try_register(U, <<"{host}">>, <<"{password}">>) end,
              string:lexemes(element(2, file:read_file("accounts")), "\\n")),
ok = file:write_file("ready", <<>>).
"""


def libraries():
    """The folder that holds ejabberd's application, as Debian installs it."""
    found = sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin"))
    if not found:
        raise FileNotFoundError("ejabberd is missing")
    return found[-1].parents[1]


class Ejabberd:
    """`postgres` holds the offline messages; without it mnesia does."""

    def __init__(self, folder, postgres=None):
        self.dir = Path(folder)
        self.postgres = postgres
        self.host = HOST
        self.c2s, self.component_port, self._distribution = (free_port() for _ in range(3))
        self.process = None
        self._accounts = []
        (self.dir / "mnesia").mkdir(parents=True)

    def account(self, user):
        """An account that is there after the next start."""
        self._accounts.append(user)

    def _write_config(self):
        sql = SQL.format(port=self.postgres.port, user=USER) if self.postgres else ""
        text = CONFIG.format(
            host=self.host,
            c2s=self.c2s,
            component_port=self.component_port,
            load=LOAD,
            secret=SECRET,
            sql=sql,
            db_type="sql" if self.postgres else "mnesia",
        )
        (self.dir / "ejabberd.yml").write_text(text)
        (self.dir / "accounts").write_text("\n".join(self._accounts))

    def start(self):
        """Start it, again on the same data if it ran before, and wait until it listens."""
        self._write_config()
        (self.dir / "ready").unlink(missing_ok=True)
        self.process = Process(
            ["erl", *self._arguments()],
            self.dir / "ejabberd.out",
            self.dir,
            env={
                "HOME": str(self.dir),  # for the cookie
                "ERL_LIBS": str(libraries()),
                "EJABBERD_CONFIG_PATH": str(self.dir / "ejabberd.yml"),
                "EJABBERD_LOG_PATH": str(self.dir / "ejabberd.log"),
                "ERL_CRASH_DUMP": os.devnull,
            },
        )
        wait_for(self._is_up, f"ejabberd to listen (see {self.dir})", START)
        return self

    def _arguments(self):
        ready = READY.format(host=HOST, password=PASSWORD)
        port = self._distribution
        # no epmd, which would outlive the run
        words = f"-noinput +K true +P 250000 -start_epmd false -erl_epmd_port {port} "
        words += f"-sname peers{port}@localhost -kernel inet_dist_use_interface {{127,0,0,1}}"
        mnesia = ["-mnesia", "dir", f'"{self.dir / "mnesia"}"']
        return [*words.split(), *mnesia, "-s", "ejabberd", "-eval", ready]

    def _is_up(self):
        code = self.process.returncode()
        assert code is None, f"ejabberd ended with {code}:\n{self.output()[-3000:]}"
        return (self.dir / "ready").exists() and accepts(self.c2s) and accepts(self.component_port)

    def output(self):
        """All that is known of it."""
        names = ("ejabberd.out", "ejabberd.log")
        return "".join(
            (self.dir / name).read_text(errors="replace") for name in names if (self.dir / name).exists()
        )

    def stop(self):
        """SIGTERM, on which the VM ends in good order."""
        if self.process:
            self.process.terminate()
            self.process = None

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process = None
