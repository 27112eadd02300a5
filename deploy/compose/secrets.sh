#!/usr/bin/env bash
# Makes the secrets of the compose file: random passwords, and certificates for Prosody and NATS.
set -euo pipefail
shopt -s inherit_errexit

usage() {
    cat <<'TEXT'
Usage: deploy/compose/secrets.sh [FOLDER]

Makes what is missing in FOLDER (default: secrets, beside this script), and leaves what is there:

  component-secret          what Prosody and the nodes share (XEP-0114)
  database-password         the nodes' in PostgreSQL
  database-admin-password   of PostgreSQL's own superuser
  prosody-certificate, prosody-key           of example.org, signed by itself
  nats-ca                                    what the next two are signed by; its key is not kept
  nats-certificate, nats-key                 of NATS
  nats-client-certificate, nats-client-key   of the nodes: NATS takes no other client

Certificates last a year. To make one anew, remove its files, all of NATS's together.
TEXT
}

case ${1:-} in
    -h | --help)
        usage
        exit 0
        ;;
esac
command -v openssl >/dev/null || {
    echo "error: openssl is missing" >&2
    exit 1
}

folder=${1:-$(cd "$(dirname "$0")" && pwd)/secrets}
mkdir -p "$folder"
# The folder keeps others out. The files in it are mounted, each by itself, into containers whose
# users are not this one: there they must be readable.
chmod 700 "$folder"
cd "$folder"

# certificate CERTIFICATE KEY NAME EXTENSION [OPTIONS OF openssl req...]
certificate() {
    local certificate=$1 key=$2 name=$3 extension=$4
    shift 4
    openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
        -config <(printf '[req]\ndistinguished_name = dn\n[dn]\n') -subj "/CN=$name" \
        -addext "$extension" -keyout "$key" -out "$certificate" "$@" 2>/dev/null
}

for name in component-secret database-password database-admin-password; do
    [ -s "$name" ] || openssl rand -hex 32 >"$name"
done
if ! [ -s prosody-certificate ]; then
    certificate prosody-certificate prosody-key example.org subjectAltName=DNS:example.org
fi
if ! [ -s nats-ca ]; then
    certificate nats-ca nats-ca-key amphora-nats basicConstraints=critical,CA:TRUE
    by=(-CA nats-ca -CAkey nats-ca-key)
    certificate nats-certificate nats-key nats subjectAltName=DNS:nats "${by[@]}"
    certificate nats-client-certificate nats-client-key amphora subjectAltName=DNS:amphora "${by[@]}"
    rm nats-ca-key
fi
chmod 444 -- *
