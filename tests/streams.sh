#!/usr/bin/env bash
# Run the checks and all tests in three parallel streams, because tests on Kubernetes mostly wait: tests on nodes, tests on an
# API server without nodes, and the checks followed by all other tests. The output of the last stream is shown while it runs,
# that of the others after it. If a check fails, everything is stopped.
# Usage: tests/streams.sh PYTHON [ARGUMENT OF PYTEST ...]
#
# If FINETUNE_TEST_REQUIRE contains `kubernetes`, the binaries of the cluster are built first, while other tests run.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift

# Pods cannot keep bytecode, nor can processes under PYTHONDONTWRITEBYTECODE: each of them would compile what has changed
# since the environment was made.
"$python" -m compileall -q operator trainer tests/support

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Usage: on_kubernetes MARKS [ARGUMENT OF PYTEST ...]
on_kubernetes() {
    if [[ ${FINETUNE_TEST_REQUIRE:-} == *kubernetes* ]]; then
        PYTHONPATH=tests/support flock -F "$logs/tools" nice -n 10 "$python" -m testcluster.tools || return
    fi
    "$python" -m pytest tests/kubernetes -m "$@"
}

# Combine the exit statuses of two runs. 5 means that no test was selected, for example if an argument selects a test of the
# other run.
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

"$python" -m pytest tests/unit tests/golden tests/chart tests/integration "$@"
ended=$?
for stream in without_nodes on_nodes; do
    printf '\nTests on Kubernetes, %s:\n\n' "${stream/_/ }"
    tail --pid="${!stream}" --lines=+1 --follow "$logs/$stream"
    wait "${!stream}"
    in_all $ended $?
    ended=$?
done
exit $ended
