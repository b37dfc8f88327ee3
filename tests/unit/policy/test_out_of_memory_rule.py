"""The second out-of-memory exit of a run halves the micro-batch."""

import pytest

from factories import make_job
from finetune_api.constants import Stage
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Outcome, Restart
from finetune_api.validation import parse_job
from finetune_operator.policy import restart, scale
from finetune_operator.policy.pending import attempt_hash
from observations import STAMP
from statuses import make_status

SPEC = parse_job(make_job(workers={"nodes": 2}, training={"globalBatchSize": 16, "microBatchSize": 8})).spec


def attempt(number: int, exit_code: int | None, micro: int = 8, **fields: object) -> AttemptStatus:
    known: dict[str, object] = {
        "stage": Stage.TRAIN,
        "number": number,
        "job_name": f"a{number}",
        "start_time": STAMP,
        "end_time": STAMP,
        "outcome": Outcome.RETRYABLE if exit_code else Outcome.DISRUPTION,
        "reason": "OutOfMemory" if exit_code in (80, 137) else "Diverged",
        "exit_code": exit_code,
        "plan": AttemptPlan(nodes=2, micro_batch_size=micro, gradient_accumulation_steps=8 // micro),
        "spec_hash": attempt_hash(SPEC),
    }
    return AttemptStatus.model_validate({**known, **fields})


@pytest.mark.parametrize(
    ("attempts", "limit"),
    [
        ([attempt(1, 80)], None),
        ([attempt(1, 80), attempt(2, 80)], 4),
        ([attempt(1, 80), attempt(2, None), attempt(3, 80)], 4),
        ([attempt(1, 80), attempt(2, 80), attempt(3, 80, 4)], 2),
        ([attempt(1, 81), attempt(2, 80)], None),
    ],
    ids=["the first", "the second", "after a disruption", "the third", "another failure before"],
)
def test_the_second_out_of_memory_exit_halves_the_micro_batch(attempts: list[AttemptStatus], limit: int | None) -> None:
    status = make_status(attempts=tuple(attempts), restarts=len(attempts))
    action = restart.decide(status, Restart(max_restarts=9), max_backoff_seconds=300)
    assert isinstance(action, restart.Retry)
    assert (action.change.micro_batch_limit if action.change else None) == limit


@pytest.mark.parametrize(
    "attempts",
    [[attempt(1, 80, 1), attempt(2, 80, 1)], [attempt(1, 137), attempt(2, 137)]],
    ids=["nothing left to halve", "killed by the kernel"],
)
def test_if_a_smaller_micro_batch_cannot_help_the_run_ends_at_the_second_time(attempts: list[AttemptStatus]) -> None:
    status = make_status(attempts=tuple(attempts), restarts=2)
    assert isinstance(restart.decide(status, Restart(max_restarts=9), max_backoff_seconds=300), restart.GiveUp)


def test_the_next_attempts_keep_the_smaller_micro_batch_and_the_global_batch_until_the_spec_changes() -> None:
    status = make_status(attempts=(attempt(1, 80), attempt(2, 80)), restarts=2)
    action = restart.decide(status, Restart(max_restarts=9), max_backoff_seconds=300)
    assert isinstance(action, restart.Retry)
    plan = scale.plan_next(SPEC, status, action.change)
    assert (plan.micro_batch_size, plan.gradient_accumulation_steps, plan.micro_batch_limit) == (4, 2, 4)
    assert plan.reason == "micro-batch halved to 4 after the second out-of-memory exit"
    disrupted = make_status(attempts=(*status.run.attempts, attempt(3, None, plan=plan)))
    assert scale.plan_next(SPEC, disrupted).micro_batch_size == 4
    edited = parse_job(make_job(workers={"nodes": 2, "resources": {"limits": {"memory": "9Gi"}}})).spec
    assert scale.plan_next(edited, disrupted).micro_batch_limit is None
