#!/usr/bin/env bash
# Checks of the code and all tests, in three streams side by side, since those on Kubernetes wait for most of their time:
# on nodes, on an API server without any, and all others behind the checks. The latter are shown as they go, and the first
# two after them. A check that fails ends everything.
# Usage: tests/streams.sh PYTHON [ARGUMENT OF PYTEST ...]
#
# Where FINETUNE_TEST_REQUIRE names a cluster, its programs are built first, while what needs none runs.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Usage: on_kubernetes MARKS [ARGUMENT OF PYTEST ...]
on_kubernetes() {
    if [[ ${FINETUNE_TEST_REQUIRE:-} == *kubernetes* ]]; then
        PYTHONPATH=tests/support flock -F "$logs/tools" nice -n 10 "$python" -m testcluster.tools || return
    fi
    "$python" -m pytest tests/kubernetes -m "$@"
}

# The exit status of two runs. 5: nothing was selected, as where an argument names a test of the other one.
in_all() {
    (( $1 == 5 )) && return "$2"
    (( $2 == 5 )) && return "$1"
    return $(( $1 ? $1 : $2 ))
}

on_kubernetes 'not pods' "$@" >"$logs/without_nodes" 2>&1 &
without_nodes=$!
on_kubernetes pods "$@" >"$logs/on_nodes" 2>&1 &
on_nodes=$!
trap 'pkill -INT -P "$without_nodes,$on_nodes"' INT TERM

if ! MAKEFLAGS= make --no-print-directory VENV="${python%/bin/python}" lint types imports; then
    pkill -INT -P "$without_nodes,$on_nodes"
    wait "$without_nodes" "$on_nodes"
    exit 2
fi

"$python" -m pytest tests/unit tests/golden tests/integration "$@"
ended=$?
for stream in without_nodes on_nodes; do
    printf '\nOn Kubernetes, %s, which ran meanwhile:\n\n' "${stream/_/ }"
    tail --pid="${!stream}" --lines=+1 --follow "$logs/$stream"
    wait "${!stream}"
    in_all $ended $?
    ended=$?
done
exit $ended
