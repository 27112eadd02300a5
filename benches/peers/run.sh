#!/usr/bin/env bash
# Measures offline messages: the servers' own storages, and Amphora. `run.sh --help` says how.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=deploy/quickstart/common.sh
. "$root/deploy/quickstart/common.sh"
export PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=$root/tests/e2e # the servers and clients of the end-to-end tests

python=$(find_python)
for argument in "$@"; do
    case $argument in
        -h | --help)
            "$python" "$here/peers.py" --help
            cat <<'TEXT'
environment:
  AMPHORA_BIN        a command to measure instead of building one
  CARGO_TARGET_DIR   where cargo builds (default: ./target)
  TMPDIR             where the servers' data go (default: /tmp); it should be a real disk
TEXT
            exit 0
            ;;
        --replot) exec "$python" "$here/peers.py" "$@" ;;
    esac
done

say "Looking for what is needed"
missing=()
packages=$("$python" "$here/peers.py" --packages "$@")
for package in $packages; do
    case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) in
        installed) ;;
        *) missing+=("$package") ;;
    esac
done
[ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"

if [ -z "${AMPHORA_BIN:-}" ]; then
    need_cargo
    say "Building Amphora (a few minutes the first time)"
    (cd "$root" && cargo build --release --locked)
    target=${CARGO_TARGET_DIR:-target}
    case $target in
        /*) ;;
        *) target=$root/$target ;;
    esac
    AMPHORA_BIN=$target/release/amphora
fi
[ -x "$AMPHORA_BIN" ] || die "$AMPHORA_BIN is not there or can't be run"
export AMPHORA_BIN

work=$(mktemp -d "${TMPDIR:-/tmp}/amphora-peers.XXXXXX")
chmod 711 "$work" # PostgreSQL runs as a user of its own
# The guard has a session of its own, so that what ends us does not end it. It sees our end
# when the pipe closes, which only this process and the driver that takes its place hold.
exec 9> >(exec setsid "$here/guard.sh" "$work" >/dev/null 2>&1)

say "Measuring (data in $work)"
exec "$python" "$here/peers.py" --work "$work" "$@"
