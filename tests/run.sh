#!/usr/bin/env bash
# Runs every test, and installs what the tests need first.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: tests/run.sh [STEP] [PYTEST ARGUMENTS...]

Without a step all of them run, in this order; the first that fails ends the run.

  scripts   shellcheck over the scripts
  lua       luacheck over the interceptor for Prosody
  erlang    the interceptor for ejabberd: layout, compiled with warnings as errors,
            unit tests, dialyzer
  lint      cargo fmt --check, cargo clippy with warnings as errors
  unit      cargo test over the whole workspace
  deploy    the linters of systemd, Compose, Docker and Kubernetes over deploy/, and its settings by
            `amphora check-config`
  e2e       build the command, then pytest over tests/e2e: real Prosody, node and clients

  tests/run.sh e2e --server ejabberd
                                 over ejabberd instead, or: both
  tests/run.sh e2e -k expiry     only the end-to-end tests whose names say so
  tests/run.sh e2e -x --pdb      any other arguments of pytest

Environment:
  CARGO_TARGET_DIR   where cargo builds (default: cargo's own, ./target)
  AMPHORA_CACHE      where the Python environment, a client in C++ and dialyzer's table are kept
                     (default: ~/.cache/amphora)
  AMPHORA_BIN        a command to test instead of building one (deploy, e2e)
EOF
}

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=deploy/quickstart/common.sh
. "$root/deploy/quickstart/common.sh"
cd "$root"

work=''
current=''

# Ends what the tests left behind: processes whose working directory is in our own folder.
clean_up() {
    local status=$? process where
    if [ -n "$work" ]; then
        for process in /proc/[0-9]*; do
            where=$(readlink "$process/cwd" 2>/dev/null) || continue
            case $where in
                "$work"/*) kill -KILL "${process#/proc/}" 2>/dev/null || true ;;
            esac
        done
        if [ "$status" -eq 0 ]; then
            rm -rf "$work"
        else
            printf 'The logs of the servers and nodes are in %s\n' "$work" >&2
        fi
    fi
    if [ "$status" -ne 0 ]; then
        printf '%sFAILED: %s (exit %d)%s\n' "$RED" "${current:-before the first step}" "$status" \
            "$PLAIN" >&2
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

begin() {
    current=$1
    say "$1"
}

step_scripts() {
    need shellcheck shellcheck
    begin "shellcheck"
    local scripts=()
    mapfile -t scripts < <(find .ci benches deploy tests -name '*.sh' -o -path .ci/run)
    shellcheck -x "${scripts[@]}"
    note "${#scripts[@]} scripts"
}

step_lua() {
    need luacheck lua-check
    begin "luacheck deploy/prosody"
    # its settings, if any, are beside the module
    (cd deploy/prosody && luacheck --no-color .)
}

# dialyzer's table of ejabberd and what it stands on, made once for each version; prints its path.
make_plt() {
    local stamp plt ebins=()
    # Debian's folder of ejabberd has two names
    mapfile -t ebins < <(readlink -f /usr/lib/*/ejabberd-*/ebin \
        /usr/lib/erlang/lib/p1_{utils,xml,xmpp,yconf}-*/ebin | sort -u)
    stamp=$( (erl -noinput -eval 'io:put_chars(erlang:system_info(otp_release)), halt().' &&
        printf '%s\n' "${ebins[@]}") | sha256sum | cut -c 1-12)
    plt=$(cache_folder)/dialyzer-$stamp.plt
    if [ ! -e "$plt" ]; then
        say "Making dialyzer's table (a few minutes, once)" >&2
        # it complains about what it finds in others' code
        dialyzer --quiet --build_plt --output_plt "$plt.$$" --apps erts kernel stdlib crypto mnesia \
            -r "${ebins[@]}" >/dev/null || [ -e "$plt.$$" ] || die "dialyzer made no table"
        mv "$plt.$$" "$plt"
    fi
    printf '%s\n' "$plt"
}

# erlfmt is not in Debian. What it never leaves is looked for: tabs, blanks at the end of a line, and
# lines longer than this, which leaves room for the texts that it does not break.
ERLANG_WIDTH=136

check_erlang_layout() {
    local files=(deploy/ejabberd/{src,test}/*.[eh]rl tests/e2e/modules/*.erl) problems
    problems=$(awk -v width=$ERLANG_WIDTH '
        /\t/ { print FILENAME ":" FNR ": a tab" }
        /[ ]$/ { print FILENAME ":" FNR ": a blank at the end" }
        length($0) > width { print FILENAME ":" FNR ": longer than " width }' "${files[@]}")
    [ -z "$problems" ] || die "the layout of Erlang files" "$problems"
}

# The tests of modules that need no server, in deploy/ejabberd/test.
run_eunit() {
    local tests=(deploy/ejabberd/test/*_tests.erl) names=() file
    deploy/ejabberd/compile.sh "$1/tests" "${tests[@]}"
    for file in "${tests[@]}"; do
        names+=("$(basename "$file" .erl)")
    done
    (cd "$1" && erl -noinput -pa ebin tests -eval "
        case eunit:test([$(IFS=, && echo "${names[*]}")]) of ok -> halt(0); _ -> halt(1) end.")
}

step_erlang() {
    local plt
    need_ejabberd
    need dialyzer erlang-dialyzer
    ls -d /usr/lib/erlang/lib/eunit-* >/dev/null 2>&1 || apt_install erlang-eunit
    make_work
    begin "layout of the Erlang files"
    check_erlang_layout
    begin "erlc deploy/ejabberd"
    deploy/ejabberd/compile.sh "$work/erlang/ebin"
    begin "eunit deploy/ejabberd/test"
    run_eunit "$work/erlang"
    begin "dialyzer deploy/ejabberd"
    plt=$(make_plt)
    dialyzer --quiet --plt "$plt" -r "$work/erlang/ebin"
}

need_component() {
    cargo "$1" --version >/dev/null 2>&1 && return
    have rustup || die "cargo $1 is missing" "install the component $2 of your Rust toolchain"
    say "Installing $2 (rustup)"
    rustup component add "$2"
}

step_lint() {
    need_cargo
    need_component fmt rustfmt
    need_component clippy clippy
    begin "cargo fmt --check"
    cargo fmt --all --check
    begin "cargo clippy"
    cargo clippy --locked --workspace --all-targets -- -D warnings
}

# The servers that the store's tests start, as users who are not root.
need_databases() {
    have pg_createcluster || apt_install postgresql
    [ -x /usr/sbin/mariadbd ] || apt_install mariadb-server
    need openssl openssl
    note "The packages' own services are not used here."
}

# The server that nodes of a cluster meet at.
need_nats() {
    need nats-server nats-server
}

# A folder for what the tests write; other users must be able to pass through.
make_work() {
    [ -z "$work" ] || return 0
    work=$(mktemp -d "${TMPDIR:-/tmp}/amphora-tests.XXXXXX")
    chmod 711 "$work"
}

step_unit() {
    need_cargo
    need_databases
    make_work
    begin "cargo test"
    mkdir -p "$work/unit"
    chmod 711 "$work/unit"
    TMPDIR=$work/unit cargo test --locked --workspace
}

# Builds the command unless AMPHORA_BIN names one.
need_amphora() {
    [ -z "${AMPHORA_BIN:-}" ] || return 0
    need_cargo
    begin "cargo build"
    cargo build --locked
}

step_deploy() {
    local python
    need systemd-analyze systemd
    need nats-server nats-server
    need openssl openssl
    need_prosody
    python=$(make_venv tests/deploy/requirements.txt yamllint)
    need_amphora
    make_work
    mkdir -p "$work/deploy"
    begin "the linters over deploy"
    tests/deploy/lint.sh "$python" "${AMPHORA_BIN:-${CARGO_TARGET_DIR:-target}/debug/amphora}" "$work/deploy"
}

# Prosody's community modules, which Debian packs apart: push (mod_cloud_notify) is one.
need_prosody_modules() {
    [ -d /usr/lib/prosody/modules/mod_cloud_notify ] || apt_install prosody-modules
}

# Compiles the client in tests/e2e/gloox, once for each version of it; prints where it is.
make_gloox() {
    local source=tests/e2e/gloox/client.cpp flags=(-std=c++17 -O1 -Wall -Wextra -Werror) stamp folder
    need g++ g++ >&2
    if ! printf '#include <gloox/amp.h>\n' | g++ -E -x c++ - >/dev/null 2>&1; then
        apt_install libgloox-dev >&2
    fi
    stamp=$( (g++ --version && printf '%s\n' "${flags[@]}" && cat "$source") |
        sha256sum | cut -c 1-12)
    folder=$(cache_folder)/gloox-$stamp
    if [ ! -x "$folder/client" ]; then
        say "Compiling the client of gloox in $folder" >&2
        mkdir -p "$folder"
        # another run may be compiling it too
        g++ "${flags[@]}" -o "$folder/client.$$" "$source" -lgloox >&2
        mv "$folder/client.$$" "$folder/client"
    fi
    printf '%s\n' "$folder/client"
}

step_e2e() {
    local python gloox
    need_prosody
    need_prosody_modules
    case " $* " in
        *" --server ejabberd "* | *" --server both "* | *" --server=ejabberd "* | *" --server=both "*)
            need_ejabberd
            # what ejabberd stores with in PostgreSQL
            [ -d /usr/share/doc/erlang-p1-pgsql ] || apt_install erlang-p1-pgsql
            ;;
    esac
    need_databases
    need_nats
    python=$(make_venv tests/e2e/requirements.txt)
    gloox=$(make_gloox)
    need_amphora
    begin "pytest tests/e2e"
    make_work
    mkdir -p "$work/servers"
    chmod 711 "$work/servers"
    AMPHORA_GLOOX=$gloox PYTHONDONTWRITEBYTECODE=1 TMPDIR=$work/servers "$python" -m pytest -q \
        --basetemp "$work/run" "$@" tests/e2e
}

case ${1:-all} in
    -h | --help)
        usage
        trap - EXIT
        ;;
    all)
        [ $# -eq 0 ] || shift
        for step in scripts lua erlang lint unit deploy; do
            "step_$step"
        done
        step_e2e "$@"
        ;;
    scripts | lua | erlang | lint | unit | deploy)
        "step_$1"
        ;;
    e2e)
        shift
        step_e2e "$@"
        ;;
    *)
        usage >&2
        current="no such step: $1"
        exit 2
        ;;
esac
