#!/usr/bin/env bash
# Run the checks and all tests in four parallel streams, because a single test rarely uses all cores: tests on nodes, tests on
# an API server without nodes, tests of checkpoints and of training, and the checks followed by all other tests. The output of
# the last stream is shown while it runs, that of the others after it. If a check fails, everything is stopped.
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

checkpoints_and_training() {
    "$python" -m pytest tests/integration/checkpoint tests/integration/train "$@"
}

# Combine the exit statuses of two runs. 5 means that no test was selected, for example if an argument selects a test of the
# other run.
in_all() {
    (( $1 == 5 )) && return "$2"
    (( $2 == 5 )) && return "$1"
    return $(( $1 ? $1 : $2 ))
}

on_kubernetes 'not pods' "$@" >"$logs/kubernetes_without_nodes" 2>&1 &
pids[0]=$!
on_kubernetes pods "$@" >"$logs/kubernetes_with_nodes" 2>&1 &
pids[1]=$!
checkpoints_and_training "$@" >"$logs/checkpoints_and_training" 2>&1 &
pids[2]=$!
names=(kubernetes_without_nodes kubernetes_with_nodes checkpoints_and_training)
stop_streams() { pkill -INT -P "$(IFS=,; echo "${pids[*]}")"; }
trap stop_streams INT TERM

if ! MAKEFLAGS= make --no-print-directory VENV="${python%/bin/python}" lint types imports; then
    stop_streams
    wait "${pids[@]}"
    exit 2
fi

"$python" -m pytest tests/unit tests/golden tests/chart tests/integration \
    --ignore=tests/integration/checkpoint --ignore=tests/integration/train "$@"
ended=$?
for index in "${!pids[@]}"; do
    printf '\nTests of %s:\n\n' "${names[index]//_/ }"
    tail --pid="${pids[index]}" --lines=+1 --follow "$logs/${names[index]}"
    wait "${pids[index]}"
    in_all $ended $?
    ended=$?
done
exit $ended
