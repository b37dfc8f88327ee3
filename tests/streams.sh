#!/usr/bin/env bash
# All tests, in two streams side by side: those on Kubernetes, which wait for half of their time, and all others. The others
# are shown as they go, those on Kubernetes after them. Usage: tests/streams.sh PYTHON [ARGUMENT OF PYTEST ...]
#
# Where FINETUNE_TEST_REQUIRE names a cluster, its programs are built first, while tests run that need none.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift

on_kubernetes() {
    if [[ ${FINETUNE_TEST_REQUIRE:-} == *kubernetes* ]]; then
        PYTHONPATH=tests/support nice -n 10 "$python" -m testcluster.tools || return
    fi
    # In two processes: the one without pods needs no nodes, and gets a cluster that has none.
    "$python" -m pytest tests/kubernetes -m pods "$@"
    pods_ended=$?
    (( pods_ended == 2 )) && return 2 # interrupted
    "$python" -m pytest tests/kubernetes -m 'not pods' "$@"
    in_all $pods_ended $?
}

# The exit status of two runs. 5: nothing was selected, as where an argument names a test of the other one.
in_all() {
    (( $1 == 5 )) && return "$2"
    (( $2 == 5 )) && return "$1"
    return $(( $1 ? $1 : $2 ))
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
on_kubernetes "$@" >"$log" 2>&1 &
kubernetes=$!
trap 'pkill -INT -P "$kubernetes"' INT TERM

"$python" -m pytest tests/unit tests/golden tests/integration "$@"
others_ended=$?
printf '\nTests on Kubernetes, which ran meanwhile:\n\n'
tail --pid="$kubernetes" --lines=+1 --follow "$log"
wait "$kubernetes"
kubernetes_ended=$?

in_all $others_ended $kubernetes_ended
