#!/usr/bin/env bash
# Checks deploy/ by the tools of those who read it. tests/run.sh deploy installs them and calls this:
#
#   tests/deploy/lint.sh PYTHON AMPHORA WORK
#
# PYTHON is the one of the environment of requirements.txt, AMPHORA the command, WORK a folder that
# can be written to.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=deploy/quickstart/common.sh
. "$root/deploy/quickstart/common.sh"
cd "$root"

python=$1 amphora=$2 work=$3
tools=${python%/python}

# A unit is looked at in a root of its own: there the command is where the unit wants it, and no
# unit of this machine is in the way. 15: of 100, what systemd calls 1.5.
check_systemd() {
    local base=$work/systemd unit
    local units=$base/etc/systemd/system
    mkdir -p "$base/usr/bin" "$units/amphora.service.d" "$base/etc/amphora/nodes"
    cp "$amphora" "$base/usr/bin/amphora"
    cp deploy/systemd/*.service "$units"
    cp deploy/systemd/postgres.conf "$units/amphora.service.d"
    for unit in amphora.service amphora@1.service; do
        say "systemd-analyze verify $unit"
        # it warns of what it does not know, and ends well: a word is a failure
        systemd-analyze verify --root="$base" --recursive-errors=no --man=no "$units/$unit" \
            >"$work/verify" 2>&1 || true
        [ ! -s "$work/verify" ] || die "$unit" "$(cat "$work/verify")"
    done
    for unit in amphora.service amphora@.service; do
        say "systemd-analyze security $unit"
        systemd-analyze security --no-pager --offline=yes --threshold=15 "$units/$unit" \
            >"$work/security" || die "$unit is not closed enough" "$(tail -n 1 "$work/security")"
        note "$(tail -n 1 "$work/security")"
    done
}

# With secrets as secrets.sh makes them, at the place where containers see them.
check_compose() {
    local secrets=$work/secrets
    say "docker-compose config, check-jsonschema: compose.yaml"
    "$tools/docker-compose" --file deploy/compose/compose.yaml config --format json >"$work/compose.json"
    "$tools/check-jsonschema" --quiet --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
    say "hadolint"
    "$tools/hadolint" deploy/compose/*/Dockerfile
    say "secrets.sh, nats-server -t, prosodyctl check config"
    deploy/compose/secrets.sh "$secrets"
    sed "s#/run/secrets#$secrets#g; s#/var/lib/nats#$work/jetstream#" deploy/compose/nats/nats.conf \
        >"$work/nats.conf"
    nats-server -t -c "$work/nats.conf"
    mkdir -p "$work/prosody/certs"
    sed "s#/run/secrets#$secrets#g; s#\"/var/lib/prosody\"#\"$work/prosody\"#" \
        deploy/compose/prosody/prosody.cfg.lua >"$work/prosody/prosody.cfg.lua"
    # --root: its own user may not read the secrets of ours; a certificate that can't be loaded is an
    # error in its log alone
    if ! prosodyctl --root --config "$work/prosody/prosody.cfg.lua" check config >"$work/prosodyctl" 2>&1 ||
        grep -q 'error' "$work/prosodyctl"; then
        die "prosody.cfg.lua" "$(cat "$work/prosodyctl")"
    fi
}

check_kubernetes() {
    say "kubectl kustomize, kubernetes-validate: deploy/kubernetes"
    "$tools/kubectl" kustomize deploy/kubernetes >"$work/kubernetes.yaml"
    "$tools/kubernetes-validate" --strict --quiet "$work/kubernetes.yaml" \
        deploy/kubernetes/secret.example.yaml
}

say "yamllint"
"$tools/yamllint" --strict -c tests/deploy/yamllint.yaml deploy tests
check_systemd
check_compose
check_kubernetes
say "amphora check-config, as each node would start"
PYTHONDONTWRITEBYTECODE=1 "$python" tests/deploy/settings.py --amphora "$amphora" --work "$work"
