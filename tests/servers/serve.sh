#!/usr/bin/env bash
# A database server of its own for tests, in a folder of its own, on a free port.
#
#   tests/servers/serve.sh postgres|mariadb [SIZE]
#
# Prints 'ready PORT FOLDER' when it answers. Then it does what it reads, a word a line:
#
#   kill     SIGKILL to the server and all its processes; prints 'killed'
#   start    starts it again (first kills what is left), on the same port; prints 'ready PORT FOLDER'
#
# At the end of its input it stops the server and removes the folder, so that nothing is left
# however the test ends. With a SIZE (as 64m) the folder is a disk in memory of that size; only
# root can have that.
#
# SERVER_OPTIONS in the environment are given to the server after the script's own, and win: as
# '--innodb-buffer-pool-size=1G', or '-c shared_buffers=1GB'.
#
# The servers sync as in earnest. Users: 'amphora' may make databases; 'postgres' or 'root' may
# do all; 'certified' is let in under TLS, with a certificate: FOLDER/client.pem, FOLDER/client.key.
# Each has the password 'secret'. FOLDER/ca.pem signed that certificate and the server's, which is
# for 'localhost'; FOLDER/other-ca.pem signed none. Unix sockets are in FOLDER: of MariaDB 'socket'.
set -euo pipefail

kind=$1
size=${2:-}
read -r -a options <<<"${SERVER_OPTIONS:-}"
password=secret
server=''
mounted=''

die() {
    printf 'serve.sh: %s\n' "$1" >&2
    exit 1
}

folder=$(mktemp -d "${TMPDIR:-/tmp}/amphora-$kind.XXXXXX")
chmod 755 "$folder"
log=$folder/log

clean_up() {
    local status=$?
    trap - EXIT INT TERM HUP
    [ "$status" -eq 0 ] || [ "$status" -eq 143 ] || tail -n 20 "$log" >&2
    end KILL
    cd /
    [ -z "$mounted" ] || umount -l "$folder" || true
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 143' INT TERM HUP

# The server's processes, whose working folder is in ours.
processes() {
    local process where
    [ -n "$server" ] || return 0
    printf '%s\n' "$server"
    for process in /proc/[0-9]*; do
        where=$(readlink "$process/cwd" 2>/dev/null) || continue
        case $where in
            "$folder"/*) printf '%s\n' "${process#/proc/}" ;;
        esac
    done
}

# end SIGNAL: sends it to all of them, and waits for the first.
end() {
    local process
    for process in $(processes); do
        kill -"$1" "$process" 2>/dev/null || true
    done
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    server=''
}

if [ -n "$size" ]; then
    mount -t tmpfs -o "size=$size,mode=755" amphora-test "$folder" || die "cannot mount a disk in memory"
    mounted=yes
fi

case $kind in
    postgres)
        user=postgres
        bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
        [ -n "$bin" ] || die "PostgreSQL is not installed (package postgresql)"
        ;;
    mariadb)
        user=mysql
        [ -x /usr/sbin/mariadbd ] || die "MariaDB is not installed (package mariadb-server)"
        ;;
    *) die "postgres or mariadb?" ;;
esac

# The servers refuse root, or should.
as_user=()
if [ "$(id -u)" -eq 0 ]; then
    as_user=(setpriv "--reuid=$user" "--regid=$user" --init-groups)
    chown "$user:" "$folder"
fi
run() { "${as_user[@]}" env -i PATH="$PATH:/usr/sbin" LC_ALL=C.UTF-8 HOME="$folder" "$@"; }
cd "$folder"

certificates() {
    local quick=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1)
    run openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem
    run openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr
    printf 'subjectAltName=DNS:localhost\n' >names
    run openssl x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
        -extfile names -out server.pem
    run openssl req "${quick[@]}" -nodes -subj /CN=certified -keyout client.key -out client.csr
    printf 'extendedKeyUsage=clientAuth\n' >use
    run openssl x509 -req -days 2 -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
        -extfile use -out client.pem
    run openssl req -x509 "${quick[@]}" -nodes -days 2 -subj /CN=test-ca -keyout other-ca.key \
        -out other-ca.pem
    run chmod 600 server.key
} >>"$log" 2>&1

make_postgres() {
    run sh -c "printf '%s' $password > password"
    run "$bin/initdb" -D data -U postgres -A scram-sha-256 --pwfile=password --encoding=UTF8 \
        --locale=C.UTF-8 --no-sync >>"$log" 2>&1
    run sed -i -e '1i hostssl all certified all scram-sha-256 clientcert=verify-ca' \
        -e '1i host all certified all reject' data/pg_hba.conf
}

start_postgres() {
    # It ends with this script, however that ends. Its socket is above its data: the whole path may be
    # longer than that of a socket can be.
    "${as_user[@]}" setpriv --pdeathsig QUIT "$bin/postgres" -D data -p "$port" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories=.. -c max_connections=300 \
        -c shared_buffers=64MB -c fsync=on -c ssl=on -c ssl_cert_file="$folder/server.pem" \
        -c ssl_key_file="$folder/server.key" -c ssl_ca_file="$folder/ca.pem" \
        -c log_min_messages=warning "${options[@]}" \
        </dev/null >>"$log" 2>&1 &
    server=$!
}

answers_postgres() { "$bin/pg_isready" -q -h 127.0.0.1 -p "$port"; }

sql_postgres() {
    PGPASSWORD=$password "$bin/psql" -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$port" -U postgres \
        -d postgres -c "$1" >>"$log" 2>&1
}

users_postgres() {
    sql_postgres "CREATE ROLE amphora LOGIN CREATEDB PASSWORD '$password'"
    sql_postgres "CREATE ROLE certified LOGIN PASSWORD '$password' IN ROLE amphora"
}

make_mariadb() {
    local option page=()
    for option in "${options[@]}"; do
        case $option in --innodb-page-size=*) page=("$option") ;; esac
    done
    run mariadb-install-db --no-defaults --datadir="$folder/data" --tmpdir="$folder" --skip-test-db \
        --auth-root-authentication-method=normal --innodb-log-file-size=32M "${page[@]}" \
        >>"$log" 2>&1
}

start_mariadb() {
    "${as_user[@]}" setpriv --pdeathsig KILL /usr/sbin/mariadbd --no-defaults \
        --datadir="$folder/data" --socket="$folder/socket" --port="$port" --bind-address=127.0.0.1 \
        --pid-file="$folder/pid" --tmpdir="$folder" --skip-name-resolve --max-connections=300 \
        --innodb-buffer-pool-size=64M --innodb-log-file-size=32M \
        --innodb-flush-log-at-trx-commit=1 --ssl-ca="$folder/ca.pem" \
        --ssl-cert="$folder/server.pem" --ssl-key="$folder/server.key" "${options[@]}" \
        </dev/null >>"$log" 2>&1 &
    server=$!
}

answers_mariadb() { mariadb-admin --no-defaults --socket="$folder/socket" ping >/dev/null 2>&1; }

users_mariadb() {
    mariadb --no-defaults --socket="$folder/socket" -u root >>"$log" 2>&1 <<SQL
CREATE USER 'amphora'@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON *.* TO 'amphora'@'127.0.0.1';
CREATE USER 'amphora'@'localhost' IDENTIFIED BY '$password';
GRANT ALL ON *.* TO 'amphora'@'localhost';
CREATE USER 'certified'@'127.0.0.1' IDENTIFIED BY '$password' REQUIRE X509;
GRANT ALL ON *.* TO 'certified'@'127.0.0.1';
CREATE OR REPLACE USER 'root'@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON *.* TO 'root'@'127.0.0.1' WITH GRANT OPTION;
SQL
}

# Whether it came up: it answers, and lives.
came_up() {
    until "answers_$kind"; do
        kill -0 "$server" 2>/dev/null || return 1
        sleep 0.05
    done
    kill -0 "$server" 2>/dev/null
}

start() {
    local tries
    for tries in 1 2 3 4 5 6 7 8 9 10; do
        "start_$kind"
        ! came_up || return 0
        end KILL
        # Another program may have the port; after a kill, old processes may be on their way out.
        [ "$1" = again ] && sleep 0.2 || port=$((20000 + RANDOM % 12000))
    done
    tail -n 20 "$log" >&2
    die "$kind does not start ($tries tries)"
}

certificates
"make_$kind"
port=$((20000 + RANDOM % 12000))
start first
"users_$kind"
printf 'ready %s %s\n' "$port" "$folder"

while read -r word; do
    case $word in
        kill)
            end KILL
            printf 'killed\n'
            ;;
        start)
            end KILL
            start again
            printf 'ready %s %s\n' "$port" "$folder"
            ;;
        *) die "no such word: $word" ;;
    esac
done
