#!/usr/bin/env bash
# Compiles the interceptor against the ejabberd of this machine.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: deploy/ejabberd/compile.sh FOLDER [FILE...]

Compiles the interceptor, or these files, into FOLDER. A warning is an error. What it makes
belongs to the version of ejabberd that is installed, and to no other.

Environment:
  ERL_LIBS   the folder with ejabberd's application, if it is none of the usual ones
             (ejabberdctl has it: grep ERL_LIBS "$(command -v ejabberdctl)")
TEXT
}

here=$(cd "$(dirname "$0")" && pwd)

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The folders of ejabberd and its libraries: they are applications, or at least modules.
ask() {
    erl -noinput -eval '
        Of = fun(Name) ->
            case {code:lib_dir(Name), code:which(Name)} of
                {[_ | _] = Dir, _} -> Dir;
                {_, [_ | _] = Beam} -> filename:dirname(filename:dirname(Beam));
                _ -> io:format(standard_error, "no ~s~n", [Name]), halt(1)
            end
        end,
        [io:format("~s~n", [Of(Name)]) || Name <- [ejabberd, xmpp, fast_xml, p1_utils]],
        halt().'
}

case ${1:-} in
    '' | -h | --help)
        usage
        exit 0
        ;;
esac
folder=$1
shift
[ $# -gt 0 ] || set -- "$here"/src/*.erl

command -v erlc >/dev/null || die "there is no Erlang compiler (erlc)"
if [ -z "${ERL_LIBS:-}" ]; then
    for found in /usr/lib/*/ejabberd-*/ebin /opt/ejabberd*/lib/ejabberd-*/ebin; do
        [ ! -d "$found" ] || ERL_LIBS=${found%/*/*}
    done
fi
export ERL_LIBS=${ERL_LIBS:-}
mapfile -t dirs < <(ask)
[ ${#dirs[@]} -eq 4 ] || die "ejabberd was not found; set ERL_LIBS"

mkdir -p "$folder"
flags=(-Werror +debug_info -o "$folder" -pa "$folder" -pa "${dirs[0]}/ebin")
for dir in "${dirs[@]}"; do
    flags+=(-I "$dir/include")
done
exec erlc "${flags[@]}" "$@"
