#!/usr/bin/env python3
"""Gives the settings in deploy/ to `amphora check-config`, as each node would get them.

The environment is the one that compose.yaml, the StatefulSet or the unit gives, and secrets are files
where it says that they are. What no tool of Kubernetes looks at is looked at too: that selectors find
the pods, and that volumes and ports are those that there are.
"""

import argparse
import base64
import binascii
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"

#: What a unit's specifiers stand for, but for credentials: a machine called web7, the node 1.
SPECIFIERS = {"t": "/run", "S": "/var/lib", "l": "web7", "i": "1"}


def nats_credentials():
    """Credentials of nobody, in the form that nsc writes: a JWT, and a seed of zeros."""
    seed = bytes([18 << 3 | 20 >> 2, (20 & 3) << 6]) + bytes(32)  # "SU", a user's seed
    seed += binascii.crc_hqx(seed, 0).to_bytes(2, "little")
    text = base64.b32encode(seed).decode().rstrip("=")
    return (
        "-----BEGIN NATS USER JWT-----\ne30.e30.AA\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{text}\n------END USER NKEY SEED------\n"
    )


class Checks:
    """Settings that were checked, and what was wrong."""

    def __init__(self, amphora, work):
        self.amphora = amphora
        self.work = work
        self.count = 0
        self.wrong = []

    def expect(self, right, says):
        """Notes `says` if something is not right."""
        if not right:
            self.wrong.append(says)

    def secrets(self, name, files):
        """A folder with these files, that only this user can read."""
        folder = self.work / "settings" / re.sub(r"\W", "-", name)
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text)
            (folder / file).chmod(0o400)
        return folder

    def settings(self, name, text, environment, places):
        """Runs the check, and tells what it printed; none: it failed. `places` are folders of secrets,
        and where they are here."""
        for there, here in places.items():
            text = text.replace(there, str(here))
            environment = {key: value.replace(there, str(here)) for key, value in environment.items()}
        file = self.work / "settings" / (re.sub(r"\W", "-", name) + ".toml")
        file.write_text(text)
        command = [self.amphora, "check-config", "--config", str(file)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = run.stderr + run.stdout
        if run.returncode != 0:
            self.wrong.append(f"{name}: check-config ended with {run.returncode}:\n{said}")
            return None
        self.expect("warning" not in said.lower(), f"{name}: a warning:\n{said}")
        self.count += 1
        return run.stdout


def compose(checks, rendered):
    """Each service of the node's image."""
    text = (DEPLOY / "compose/node/amphora.toml").read_text()
    nodes = {
        name: service
        for name, service in rendered["services"].items()
        if service.get("image") == "amphora:local"
    }
    checks.expect(len(nodes) == 3, f"compose.yaml: {len(nodes)} nodes instead of three")
    components = set()
    for name, service in nodes.items():
        files = {}
        for secret in service["secrets"]:
            source = Path(rendered["secrets"][secret["source"]]["file"]).name
            target = Path(secret.get("target", secret["source"])).name
            files[target] = (checks.work / "secrets" / source).read_text()
        folder = checks.secrets(f"compose-{name}", files)
        checks.settings(name, text, service["environment"], {"/run/secrets": folder})
        components.add(service["environment"]["AMPHORA__SERVERS__0__COMPONENT"])
    checks.expect(len(components) == len(nodes), "compose.yaml: nodes share a component")
    prosody = (DEPLOY / "compose/prosody/prosody.cfg.lua").read_text()
    listed = set(re.findall(r'"(amp\d\.example\.org)"', prosody))
    checks.expect(components == listed, f"Prosody knows {listed}, the nodes are {components}")


def kubernetes(checks, documents):
    """The StatefulSet's first node, and what refers to what."""
    by_kind = {document["kind"]: document for document in documents}
    example = yaml.safe_load((DEPLOY / "kubernetes/secret.example.yaml").read_text())
    sets = by_kind["StatefulSet"]
    pod = sets["spec"]["template"]
    container = pod["spec"]["containers"][0]
    settings = by_kind["ConfigMap"]
    labels = pod["metadata"]["labels"].items()
    selectors = {
        "StatefulSet": sets["spec"]["selector"]["matchLabels"],
        "Service": by_kind["Service"]["spec"]["selector"],
        "PodDisruptionBudget": by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    }
    for index, spread in enumerate(pod["spec"]["topologySpreadConstraints"]):
        selectors[f"topologySpreadConstraints[{index}]"] = spread["labelSelector"]["matchLabels"]
    for kind, selector in selectors.items():
        fits = bool(selector) and selector.items() <= labels
        checks.expect(fits, f"{kind}: its selector {selector} does not find the pods")
    service = by_kind["Service"]["metadata"]["name"]
    checks.expect(sets["spec"]["serviceName"] == service, "StatefulSet: serviceName is no Service")
    account = by_kind["ServiceAccount"]["metadata"]["name"]
    checks.expect(pod["spec"]["serviceAccountName"] == account, "StatefulSet: no such ServiceAccount")
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    checks.expect(volumes.keys() == mounts.keys(), "StatefulSet: volumes and mounts differ")
    name = volumes["settings"]["configMap"]["name"]
    checks.expect(name == settings["metadata"]["name"], "StatefulSet: no such ConfigMap")
    name = volumes["secrets"]["secret"]["secretName"]
    checks.expect(name == example["metadata"]["name"], "StatefulSet: no such Secret")
    for key, value in example["stringData"].items():
        checks.expect(value == "replace-me", f"secret.example.yaml: {key} holds something")

    environment = {}
    for variable in container["env"]:
        value = variable.get("value", "amphora-0")
        for known, its in environment.items():
            value = value.replace(f"$({known})", its)
        environment[variable["name"]] = value
    files = dict.fromkeys(example["stringData"], "something")
    files["nats.creds"] = nats_credentials()
    folder = checks.secrets("kubernetes", files)
    shown = checks.settings(
        "kubernetes", settings["data"]["amphora.toml"], environment, {mounts["secrets"]: folder}
    )
    if shown is None:
        return
    port = container["ports"][0]["containerPort"]
    checks.expect(f":{port}" in shown, f"StatefulSet: the node does not listen on port {port}")
    checks.expect("amphora-0.amp.example.org" in shown, "StatefulSet: the component is another")


def environment_of(unit, credentials):
    """What the lines `Environment=` of a unit say, and which credentials it loads."""
    specifiers = SPECIFIERS | {"d": credentials}
    environment, loaded = {}, set()
    for line in (DEPLOY / "systemd" / unit).read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "Environment":
            name, _, value = value.partition("=")
            environment[name] = re.sub("%(.)", lambda found: specifiers[found[1]], value)
        if key == "LoadCredential":
            loaded.add(value.partition(":")[0])
    return environment, loaded


def systemd(checks):
    """The unit of one node, with and without its drop-in, and two nodes of a cluster."""
    there = "/run/credentials/node"
    everything = {
        "component-secret": "something",
        "database-password": "something",
        "nats.creds": nats_credentials(),
    }
    etc = checks.secrets("systemd-etc", everything)

    def check(name, file, environment, loaded):
        folder = checks.secrets(name, {key: everything[key] for key in loaded})
        places = {there: folder, "/etc/amphora/credentials": etc}
        text = (DEPLOY / "systemd" / file).read_text()
        if "postgres" in name:
            text = text.replace("sqlite:///var/lib/amphora/amphora.db", "postgres://db/amphora")
        checks.settings(name, text, environment, places)

    environment, loaded = environment_of("amphora.service", there)
    check("systemd-one", "amphora.toml", environment, loaded)
    more, also = environment_of("postgres.conf", there)
    check("systemd-postgres", "amphora.toml", environment | more, loaded | also)
    environment, loaded = environment_of("amphora@.service", there)
    own = set()
    for file in sorted((DEPLOY / "systemd/nodes").glob("*.env")):
        lines = file.read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        check(f"systemd-node-{file.stem}", "cluster.toml", environment | given, loaded)
        checks.expect(own.isdisjoint(given.values()), f"{file.name}: something is another node's")
        own |= set(given.values())


def main():
    """Checks all; ends with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--amphora", required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    checks = Checks(given.amphora, given.work)
    compose(checks, json.loads((given.work / "compose.json").read_text()))
    kubernetes(checks, list(yaml.safe_load_all((given.work / "kubernetes.yaml").read_text())))
    systemd(checks)
    for wrong in checks.wrong:
        print(wrong, file=sys.stderr)
    if not checks.wrong:
        print(f"    {checks.count} configurations")
    sys.exit(1 if checks.wrong else 0)


if __name__ == "__main__":
    main()
