# shellcheck shell=bash
# What quickstart.sh, tests/run.sh and benches/peers/run.sh share: saying things, installing what is missing.

# `set -e` is to hold inside $(...) as well
shopt -s inherit_errexit

# Bold on a terminal, plain elsewhere.
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    BOLD=$'\e[1m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' RED='' PLAIN=''
fi

say() { printf '%s==> %s%s\n' "$BOLD" "$*" "$PLAIN"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '%serror: %s%s\n' "$RED" "$1" "$PLAIN" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# A folder for what can be made again, never inside the repository.
cache_folder() {
    local base
    if [ -n "${AMPHORA_CACHE:-}" ]; then
        base=$AMPHORA_CACHE
    elif [ -n "${XDG_CACHE_HOME:-}" ]; then
        base=$XDG_CACHE_HOME/amphora
    elif [ -n "${HOME:-}" ] && [ -d "$HOME" ] && [ -w "$HOME" ]; then
        base=$HOME/.cache/amphora
    else
        base=${TMPDIR:-/tmp}/amphora-cache-$(id -u)
    fi
    mkdir -p "$base" || die "the cache folder $base can't be made" "set AMPHORA_CACHE to another one"
    printf '%s\n' "$base"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root: $*" "run it as root, then run this script again"
    fi
}

# apt_install PACKAGE...: no questions, and no service started by the way.
apt_install() {
    have apt-get || die "missing: $*, and there is no apt-get here" \
        "install them by hand, then run this script again"
    say "Installing $* (apt-get)"
    local policy=/usr/sbin/policy-rc.d placed='' status=0 log
    log=$(mktemp)
    if [ ! -e "$policy" ]; then
        # Debian asks this file before it starts the service of a new package
        as_root sh -c "printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy"
        placed=yes
    fi
    if ! as_root apt-get update -qq; then
        note "apt-get update failed; going on with the lists that are there"
    fi
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "$@" </dev/null >"$log" 2>&1 || status=$?
    [ -z "$placed" ] || as_root rm -f "$policy"
    [ "$status" -eq 0 ] || cat "$log" >&2
    rm -f "$log"
    [ "$status" -eq 0 ] || die "apt-get could not install $*"
}

# need COMMAND PACKAGE...: installs the packages if the command is missing.
need() {
    local wanted=$1
    shift
    have "$wanted" || apt_install "$@"
    hash -r
    have "$wanted" || die "$wanted is still missing after installing $*"
}

need_prosody() {
    local found
    if have prosody; then
        note "Prosody: $(command -v prosody)"
    else
        apt_install prosody
        note "The package's own service was not started and is not used here."
    fi
    have prosody || die "prosody is still missing"
    found=$(dpkg-query -W -f='${Version}' prosody 2>/dev/null) || found=unknown
    case $found in
        0.12.* | unknown) ;;
        *) note "Prosody is $found; Amphora is tested with 0.12" ;;
    esac
}

# The package's headers are what modules are compiled with; erlang-base brings the compiler.
need_ejabberd() {
    local found
    if have ejabberdctl && have erlc; then
        note "ejabberd: $(command -v ejabberdctl)"
    else
        apt_install ejabberd erlang-base
        note "The package's own service was not started and is not used here."
    fi
    have ejabberdctl || die "ejabberd is still missing"
    found=$(dpkg-query -W -f='${Version}' ejabberd 2>/dev/null) || found=unknown
    case $found in
        23.01* | unknown) ;;
        *) note "ejabberd is $found; Amphora is tested with 23.01" ;;
    esac
}

need_cargo() {
    # rustup puts it where a bare PATH doesn't look
    if ! have cargo && [ -n "${HOME:-}" ] && [ -x "$HOME/.cargo/bin/cargo" ]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    have cargo || die "cargo is missing" "install a Rust toolchain first: https://rustup.rs"
    have cc || apt_install gcc libc6-dev
    note "$(cargo --version)"
}

good_python() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Prints a Python of 3.11 or later that can make virtual environments.
find_python() {
    local candidate
    for candidate in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
        if good_python "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    apt_install python3 python3-venv >&2
    good_python /usr/bin/python3 || die "no Python of 3.11 or later with venv"
    printf '%s\n' /usr/bin/python3
}

# make_venv REQUIREMENTS [MODULE]: an environment with exactly these, made once and whole if the
# module is in it; prints its python. One that another makes at the moment is waited for.
make_venv() {
    local requirements=$1 module=${2:-slixmpp} python version stamp folder
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
    stamp=$( (printf '%s\n' "$python" "$version" && cat "$requirements") | sha256sum | cut -c 1-12)
    folder=$(cache_folder)/python-$stamp
    mkdir -p "${folder%/*}"
    exec 9>"$folder.lock"
    flock 9
    if [ ! -e "$folder/.complete" ] || ! "$folder/bin/python" -c "import $module" 2>/dev/null; then
        say "Making a Python environment in $folder" >&2
        rm -rf "$folder"
        "$python" -m venv "$folder" >&2
        PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
            "$folder/bin/python" -m pip install --quiet --no-input --retries 5 --timeout 60 \
            --requirement "$requirements" >&2 ||
            die "pip could not install $requirements" "is the network there?"
        touch "$folder/.complete"
    fi
    exec 9>&-
    printf '%s\n' "$folder/bin/python"
}
