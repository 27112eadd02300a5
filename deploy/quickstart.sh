#!/usr/bin/env bash
# See Amphora at work in a few minutes: installs, builds, and plays a scene.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: deploy/quickstart.sh [--server prosody|ejabberd] [--keep] [--binary FILE]

Shows what Amphora does, on a fresh Debian with a Rust toolchain:

  1. installs what is missing: the server, and a Python environment with a client
  2. builds the amphora command
  3. starts a server and an Amphora node of its own on loopback, with free ports,
     in a new folder; a server that runs on this machine is left alone
  4. lets alice write to bob while he is away, and prints what each of them sees
  5. stops both and removes the folder

Options:
  --server NAME   the XMPP server: prosody (the default) or ejabberd
  --keep          leave both running after the scene, until Ctrl-C
  --binary FILE   use this amphora command instead of building one
  -h, --help      this text

Environment:
  CARGO_TARGET_DIR   where cargo builds (default: ./target)
  AMPHORA_CACHE      where the Python environment is kept (default: ~/.cache/amphora)
  NO_COLOR           no colours

It ends with 0 only if everything went as the scene tells.
EOF
}

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=deploy/quickstart/common.sh
. "$root/deploy/quickstart/common.sh"

binary=''
server=prosody
label=Prosody
stage=()
while [ $# -gt 0 ]; do
    case $1 in
        --server)
            case ${2:-} in
                prosody) server=$2 label=Prosody ;;
                ejabberd) server=$2 label=$2 ;;
                *) die "--server is prosody or ejabberd" ;;
            esac
            shift
            ;;
        --keep) stage+=(--keep) ;;
        --binary)
            [ $# -ge 2 ] || die "--binary needs a file"
            binary=$2
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            die "unknown option: $1"
            ;;
    esac
    shift
done

say "Looking for what is needed"
"need_$server"
python=$(make_venv "$root/deploy/quickstart/requirements.txt")
note "Python: $("$python" --version) with slixmpp, in ${python%/bin/python}"

if [ -z "$binary" ]; then
    need_cargo
    say "Building Amphora (a few minutes the first time)"
    (cd "$root" && cargo build --release --locked)
    binary=${CARGO_TARGET_DIR:-$root/target}/release/amphora
    case $binary in
        /*) ;;
        *) binary=$root/$binary ;;
    esac
fi
[ -x "$binary" ] || die "$binary is not there or can't be run"

say "Starting $label and Amphora"
exec env PYTHONDONTWRITEBYTECODE=1 "$python" "$root/deploy/quickstart/stage.py" \
    --binary "$binary" --server "$server" --modules "$root/deploy/$server" ${stage[@]+"${stage[@]}"}
