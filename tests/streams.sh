#!/usr/bin/env bash
# Run the checks and all tests in three parallel streams, because tests on Kubernetes mostly wait. A stream that has ended its
# group of tests takes the next one, so that all streams end at about the same time. The output of the stream that begins with
# the checks is shown while it runs, that of the others after it. If a check fails, everything is stopped.
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

# In the order in which they are taken. The first two begin at once. The shortest of the last three comes last: a stream that
# is left alone keeps the CPUs less busy.
groups=(nodes api_server unit integration train checkpoint)

# Usage: run_group GROUP [ARGUMENT OF PYTEST ...]
run_group() {
    local group=$1
    shift
    case $group in
        nodes) on_kubernetes pods "$@" ;;
        api_server) on_kubernetes 'not pods' "$@" ;;
        unit) "$python" -m pytest tests/unit tests/golden tests/chart "$@" ;;
        integration) "$python" -m pytest tests/integration --ignore=tests/integration/{checkpoint,train} "$@" ;;
        *) "$python" -m pytest "tests/integration/$group" "$@" ;;
    esac
}

# Usage: on_kubernetes MARKS [ARGUMENT OF PYTEST ...]
on_kubernetes() {
    if [[ ${FINETUNE_TEST_REQUIRE:-} == *kubernetes* ]]; then
        PYTHONPATH=tests/support flock -F "$logs/tools" nice -n 10 "$python" -m testcluster.tools || return
    fi
    "$python" -m pytest tests/kubernetes -m "$@"
}

# Run all groups that no other stream has taken. Usage: stream [--show] [ARGUMENT OF PYTEST ...]
stream() {
    local show=
    [[ ${1:-} == --show ]] && { show=yes; shift; }
    for group in "${groups[@]}"; do
        [[ -e $logs/stop ]] && return
        mkdir "$logs/$group" 2>/dev/null || continue
        if [[ $show ]]; then
            printf '\nTests: %s\n\n' "${group/_/ }"
            touch "$logs/$group/shown"
            run_group "$group" "$@"
        else
            run_group "$group" "$@" >"$logs/$group/output" 2>&1
        fi
        echo $? >"$logs/$group/status"
    done
}

stream "$@" &
first=$!
until [[ -e $logs/${groups[0]} ]]; do sleep 0.1; done
stream "$@" &
second=$!
stop() {
    touch "$logs/stop"
    pkill -INT -P "$first,$second"
}
trap stop INT TERM

if ! MAKEFLAGS= make --no-print-directory VENV="${python%/bin/python}" lint types imports; then
    stop
    wait "$first" "$second"
    exit 2
fi

stream --show "$@"
for group in "${groups[@]}"; do
    [[ -e $logs/$group/shown || ! -d $logs/$group ]] && continue
    printf '\nTests: %s\n\n' "${group/_/ }"
    tail --lines=+1 --follow "$logs/$group/output" &
    shown=$!
    until [[ -e $logs/$group/status || -e $logs/stop ]]; do sleep 0.5; done
    sleep 1
    kill "$shown"
done
wait "$first" "$second"

# pytest's 5 means that no test was selected, for example if an argument selects tests of one group.
worst=5
for group in "${groups[@]}"; do
    status=$(cat "$logs/$group/status" 2>/dev/null || echo 2)
    (( status != 5 && (worst == 5 || status > worst) )) && worst=$status
done
exit "$worst"
