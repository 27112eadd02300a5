#!/usr/bin/env bash
# Cleans up after a run, however it ended: `guard.sh FOLDER` waits for the end of its input,
# which is that of the run, ends what still runs in the folder, and removes it.
set -uo pipefail
trap '' INT TERM HUP

work=$1
case $work in
    */amphora-peers.*) ;;
    *) exit 2 ;;
esac
cat >/dev/null

# Processes whose working directory is in the folder are the run's own.
for process in /proc/[0-9]*; do
    where=$(readlink "$process/cwd" 2>/dev/null) || continue
    case $where in
        "$work"/*) kill -KILL "${process#/proc/}" 2>/dev/null ;;
    esac
done
# what was killed may still be writing its last
for _ in 1 2 3 4 5; do
    rm -rf "$work" && break
    sleep 0.2
done
