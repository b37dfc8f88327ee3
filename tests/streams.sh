#!/usr/bin/env bash
# All tests, in two streams side by side: one on Kubernetes, which waits for half of its time, and one of all others and,
# after them, of what waits longest on Kubernetes. The latter is shown as it goes, the former after it.
# Usage: tests/streams.sh PYTHON [ARGUMENT OF PYTEST ...]
#
# Where FINETUNE_TEST_REQUIRE names a cluster, its programs are built first, while tests run that need none.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift

# Need no nodes, and take as long as all others that need none.
slow=(tests/kubernetes/test_{crash_matrix,state_machine,bad_input,silent_watches}.py)

on_kubernetes() {
    if [[ ${FINETUNE_TEST_REQUIRE:-} == *kubernetes* ]]; then
        PYTHONPATH=tests/support nice -n 10 "$python" -m testcluster.tools || return
    fi
    # In two processes: the one without pods needs no nodes, and gets a cluster that has none.
    "$python" -m pytest tests/kubernetes -m pods "$@"
    then_also $? tests/kubernetes "${slow[@]/#/--ignore=}" -m 'not pods' "$@"
}

others() {
    "$python" -m pytest tests/unit tests/golden tests/integration "$@"
    then_also $? "${slow[@]}" "$@"
}

# Another run after one that has ended so, unless that was interrupted; the exit status of both.
then_also() {
    local ended=$1
    (( ended == 2 )) && return 2
    "$python" -m pytest "${@:2}"
    in_all "$ended" $?
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

others "$@"
others_ended=$?
printf '\nThe other tests on Kubernetes, which ran meanwhile:\n\n'
tail --pid="$kubernetes" --lines=+1 --follow "$log"
wait "$kubernetes"
kubernetes_ended=$?

in_all $others_ended $kubernetes_ended
