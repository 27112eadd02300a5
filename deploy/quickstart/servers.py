"""The two servers of the quickstart: how each is set up, and how it is started."""

import os
import random
import shutil
import subprocess
from pathlib import Path

FRIENDS = (("alice", "bob"), ("bob", "alice"))
HOST = "example.org"


class Prosody:
    """`modules` is the folder with its interceptor."""

    name = "Prosody"
    template, config, log = "prosody.cfg.lua.in", "prosody.cfg.lua", "prosody.log"

    def __init__(self, folder, modules, password):
        self.dir, self.modules, self.password = folder, modules, password

    def set_up(self):
        """Two accounts that know each other."""
        data = self.dir / "prosody-data" / "example%2eorg"
        for user, friend in FRIENDS:
            self._lua(data / "accounts" / f"{user}.dat", f'["password"] = "{self.password}";')
            self._lua(
                data / "roster" / f"{user}.dat",
                f'["{friend}@{HOST}"] = {{ ["subscription"] = "both"; ["groups"] = {{}}; }};',
            )

    @staticmethod
    def _lua(path, inside):
        """A file of Prosody's internal storage."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"return {{ {inside} }};\n")

    def command(self):
        """What starts it, and its environment."""
        binary = shutil.which("prosody") or "/usr/bin/prosody"
        return [binary, "-F", "--config", str(self.dir / self.config)], {}

    def is_set_up(self):
        """Whether what could not be done before the start is done."""
        return True


#: Two accounts that know each other, written when the server is up.
ACCOUNTS = """
lists:foreach(fun(U) -> ok = ejabberd_auth:try_register(U, <<"{host}">>, <<"{password}">>) end,
              [<<"alice">>, <<"bob">>]),
lists:foreach(fun({{U, F}}) ->
                  ok = mod_admin_extra:add_rosteritem(U, <<"{host}">>, F, <<"{host}">>, F,
                                                      <<"Friends">>, <<"both">>) end,
              [{{<<"alice">>, <<"bob">>}}, {{<<"bob">>, <<"alice">>}}]),
ok = file:write_file("ready", <<>>).
"""


def libraries():
    """The folder with ejabberd's application."""
    found = sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin"))
    return os.environ.get("ERL_LIBS") or str(found[-1].parents[1] if found else "")


class Ejabberd:
    """`modules` is the folder with its interceptor, which is compiled for the ejabberd that is here."""

    name = "ejabberd"
    template, config, log = "ejabberd.yml.in", "ejabberd.yml", "ejabberd.log"

    def __init__(self, folder, modules, password):
        self.dir, self.modules, self.password = folder, modules, password

    def set_up(self):
        """The compiled interceptor, and a folder for the database."""
        subprocess.run([f"{self.modules}/compile.sh", self.dir / "ebin"], check=True)
        (self.dir / "ejabberd-data").mkdir()

    def command(self):
        """What starts it, and its environment: what `ejabberdctl foreground` does, but that the
        Erlang node needs no name server of its own and no user of its own."""
        port = random.randrange(15000, 32000)
        words = f"erl -noinput -sname quickstart{port}@localhost -start_epmd false"
        words += f" -erl_epmd_port {port} -kernel inet_dist_use_interface {{127,0,0,1}}"
        words += f" -pa {self.dir / 'ebin'} -s ejabberd"
        accounts = ACCOUNTS.format(host=HOST, password=self.password)
        data = ["-mnesia", "dir", f'"{self.dir / "ejabberd-data"}"', "-eval", accounts]
        return [*words.split(), *data], {
            "HOME": str(self.dir),  # for the cookie
            "ERL_LIBS": libraries(),
            "ERL_CRASH_DUMP": os.devnull,
            "EJABBERD_CONFIG_PATH": str(self.dir / self.config),
            "EJABBERD_LOG_PATH": str(self.dir / self.log),
        }

    def is_set_up(self):
        """Whether the accounts are there."""
        return (self.dir / "ready").exists()


SERVERS = {"prosody": Prosody, "ejabberd": Ejabberd}
