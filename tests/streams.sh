#!/usr/bin/env bash
# All tests, in two streams side by side: those with pods, which wait for half of their time, and all others. The others
# are shown as they go, the tests with pods after them. Usage: tests/streams.sh PYTHON [ARGUMENT OF PYTEST ...]
#
# Where FINETUNE_TEST_REQUIRE names a cluster, its programs are built first, while tests run that need none.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
shift

with_pods() {
    if [[ ${FINETUNE_TEST_REQUIRE:-} == *kubernetes* ]]; then
        PYTHONPATH=tests/support nice -n 10 "$python" -m testcluster.tools || return
    fi
    exec "$python" -m pytest tests/kubernetes -m pods "$@"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
with_pods "$@" >"$log" 2>&1 &
pods=$!
trap 'kill -INT "$pods" 2>/dev/null' INT TERM

"$python" -m pytest -m 'not pods' tests/unit tests/golden tests/integration tests/kubernetes "$@"
others_ended=$?
printf '\nTests with pods, which ran meanwhile:\n\n'
tail --pid="$pods" --lines=+1 --follow "$log"
wait "$pods"
pods_ended=$?

# 5: nothing was selected, as where an argument names a test of the other stream.
(( others_ended == 5 && pods_ended != 5 )) && exit "$pods_ended"
(( pods_ended == 5 )) && exit "$others_ended"
exit $(( others_ended ? others_ended : pods_ended ))
