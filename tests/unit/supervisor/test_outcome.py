import pytest

from finetune_api.constants import Stage
from finetune_api.exit_codes import out_of_memory_advice
from finetune_api.progress import Progress, TerminationMessage
from finetune_api.stages import run_stages
from finetune_trainer.supervisor.outcome import RankExit, decisive_exit, exit_status, termination_message

PROGRESS = Progress(stage="train", step=7)


@pytest.mark.parametrize(
    ("exits", "rank"),
    [
        pytest.param([(0, 0, 1.0), (1, 0, 2.0)], None, id="all done"),
        pytest.param([(0, 75, 2.0), (1, 75, 1.0)], 1, id="all stopped"),
        pytest.param([(0, 75, 1.0), (1, 70, 2.0)], 1, id="a failure has precedence over a stop"),
        pytest.param([(0, 70, 2.0), (1, 65, 1.0)], 1, id="the first failure"),
        pytest.param([(0, 70, 1.0), (1, -9, 1.2)], 1, id="a lost connection seen before the exit of the peer"),
        pytest.param([(0, 70, 1.0), (1, 65, 9.0)], 0, id="a much later failure is not the cause"),
        pytest.param([(0, 80, 1.0), (1, 65, 1.1)], 0, id="the first of two causes"),
    ],
)
def test_the_decisive_exit_is_the_one_that_explains_the_others(
    exits: list[tuple[int, int, float]], rank: int | None
) -> None:
    decisive = decisive_exit([RankExit(*one) for one in exits])
    assert (None if decisive is None else decisive.rank) == rank


def test_a_rank_that_the_supervisor_terminated_explains_nothing() -> None:
    failed, ended = RankExit(0, 70, 1.0), RankExit(1, -15, 1.1, ended_by_us=True)
    assert decisive_exit([ended, failed]) is failed


@pytest.mark.parametrize(
    ("code", "error", "kills", "status"),
    [
        (65, "", 0, 65),
        (-9, "", 0, 137),
        (-9, "", 2, 80),
        (-11, "", 1, 139),
        (75, "", 0, 75),
        (70, "the fork server ended", 1, 80),
        (70, "the fork server ended", 0, 70),
    ],
)
def test_the_exit_status_of_the_pod(code: int, error: str, kills: int, status: int) -> None:
    assert exit_status(RankExit(0, code, 1.0, error=error), memory_kills=kills) == status


def message(decisive: RankExit | None, result: TerminationMessage | None, status: int) -> TerminationMessage:
    return termination_message(
        decisive, result, stage="train", status=status, last_lines=[f"line {n}" for n in range(30)], progress=PROGRESS
    )


def test_a_rank_reports_its_error_and_the_supervisor_adds_the_log() -> None:
    result = TerminationMessage(stage="train", exit_code=65, error="no column", advice="rename it", rank=1)
    found = message(RankExit(1, 65, 1.0), result, 65)
    assert found == result.model_copy(
        update={"last_lines": tuple(f"line {n}" for n in range(10, 30)), "progress": PROGRESS}
    )


def test_success_and_stops_have_no_log() -> None:
    assert message(None, TerminationMessage(stage="train", exit_code=0), 0).last_lines == ()
    assert message(RankExit(0, 75, 1.0), TerminationMessage(stage="train", exit_code=75), 75).last_lines == ()


@pytest.mark.parametrize(
    ("decisive", "status", "error"),
    [
        (RankExit(1, -11, 1.0), 139, "rank 1 was terminated by signal 11 (SIGSEGV)"),
        (RankExit(1, -63, 1.0), 191, "rank 1 was terminated by signal 63 (unknown)"),
        (RankExit(0, -9, 1.0), 80, "rank 0 was killed by the kernel because the pod reached its memory limit"),
        (
            RankExit(0, -9, 1.0, error="the fork server ended"),
            80,
            "rank 0 was killed by the kernel because the pod reached its memory limit",
        ),
        (RankExit(0, 3, 1.0), 3, "rank 0 exited with code 3 (Exit3) without a result"),
        (RankExit(0, 70, 1.0, error="no fork server"), 70, "rank 0 could not run: no fork server"),
    ],
)
def test_the_supervisor_explains_the_exit_of_a_rank_without_a_result(
    decisive: RankExit, status: int, error: str
) -> None:
    assert message(decisive, None, status).error == error


@pytest.mark.parametrize("stage", run_stages())
def test_a_kill_for_memory_has_the_advice_of_its_stage(stage: Stage) -> None:
    found = termination_message(
        RankExit(0, -9, 1.0), None, stage=stage, status=80, last_lines=(), progress=Progress(stage=stage)
    )
    assert found.advice == out_of_memory_advice(stage)


def test_a_result_written_before_a_kill_is_ignored() -> None:
    found = message(RankExit(0, -9, 1.0), TerminationMessage(stage="train", exit_code=0), 137)
    assert found.error == "rank 0 was terminated by signal 9 (SIGKILL)"
    assert found.exit_code == 137
