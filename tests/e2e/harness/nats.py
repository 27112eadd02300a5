"""A NATS server of our own, with JetStream."""

import subprocess
from pathlib import Path

from .ports import free_port
from .process import Process
from .waiting import accepts, wait_for

CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{store}" }}
{more}
"""


class Nats:
    """One server; what it keeps outlives a kill. `more` goes into its settings."""

    def __init__(self, folder, more="", scheme="nats"):
        self.dir = Path(folder)
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.config = self.dir / "nats.conf"
        self.config.write_text(CONFIG.format(port=self.port, store=self.dir / "store", more=more))
        self.process = None

    def start(self):
        """Start it and wait until it listens."""
        self.process = Process(["nats-server", "-c", str(self.config)], self.dir / "nats.log", self.dir)
        wait_for(lambda: accepts(self.port), f"NATS to listen:\n{self.output()[-2000:]}")
        return self

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process = None

    def signal(self, number):
        """Any other signal."""
        self.process.signal(number)

    def stop(self):
        """SIGTERM."""
        if self.process:
            self.process.terminate()
            self.process = None

    def output(self):
        """All that is known of it, for a failed test."""
        log = self.dir / "nats.log"
        return log.read_text(errors="replace") if log.exists() else ""


def make_certificates(folder):
    """A CA, a certificate of a server on 127.0.0.1 and one of a client; their paths by name."""
    folder = Path(folder)
    paths = {name: folder / name for name in ("ca.pem", "ca.key", "server.pem", "server.key", "client.pem", "client.key")}

    def run(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test CA", "-days", 2,
        "-keyout", "ca.key", "-out", "ca.pem")
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        (folder / "extension").write_text(extension)
        run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", "request")
        run("x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", 2, "-extfile", "extension", "-out", f"{name}.pem")
    return paths
