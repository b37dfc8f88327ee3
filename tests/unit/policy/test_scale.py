"""Number of workers of an attempt: (spec, previous plan) -> plan, and (spec, pods, time) -> fewer or not."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import Stage
from finetune_api.progress import Progress
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, ResolvedStatus, Spec
from finetune_api.validation import parse_job
from finetune_operator.observed import ObservedAttempt
from finetune_operator.policy import history, restart, scale, world
from finetune_operator.policy.pending import attempt_hash
from observations import STAMP, make_pod, make_stage
from statuses import make_status

BEGUN = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def make_spec(nodes: int = 4, fewest: int | None = 1, *, micro: int | None = None, **workers: Any) -> Spec:
    training = {"globalBatchSize": 32, "microBatchSize": micro}
    return parse_job(make_job(workers={"nodes": nodes, "minNodes": fewest, **workers}, training=training)).spec


def make_attempt(number: int = 1, **fields: Any) -> AttemptStatus:
    defaults = {
        "stage": Stage.TRAIN,
        "number": number,
        "job_name": f"a{number}",
        "start_time": STAMP,
        "plan": AttemptPlan(nodes=4),
    }
    return AttemptStatus.model_validate(defaults | fields)


def starting(running: int, expected: int = 4, stage: Stage = Stage.TRAIN, **fields: Any) -> ObservedAttempt:
    pods = [make_pod(index, phase="Running" if index < running else "Pending") for index in range(expected)]
    return make_stage(stage, pods=tuple(pods), expected_pods=expected, **fields)


FIVE_MINUTES = timedelta(minutes=5)
FEWER = [
    pytest.param(make_spec(), starting(2), FIVE_MINUTES, 2, id="those that are running"),
    pytest.param(make_spec(), starting(3), FIVE_MINUTES, 2, id="three cannot share 32 examples"),
    pytest.param(make_spec(), starting(3), FIVE_MINUTES - timedelta(seconds=1), None, id="time is left"),
    pytest.param(make_spec(startTimeout="10s"), starting(1), timedelta(seconds=10), 1, id="its own timeout"),
    pytest.param(make_spec(), starting(4), FIVE_MINUTES, None, id="all are running, and importing"),
    pytest.param(make_spec(), replace(starting(2), failing=True), FIVE_MINUTES, None, id="fails by itself"),
    pytest.param(make_spec(), starting(0), FIVE_MINUTES, None, id="none runs"),
    pytest.param(make_spec(fewest=2), starting(1), FIVE_MINUTES, None, id="too few"),
    pytest.param(make_spec(fewest=None), starting(2), FIVE_MINUTES, None, id="not requested"),
    pytest.param(make_spec(micro=8), starting(3), FIVE_MINUTES, 2, id="whole micro-batches"),
    pytest.param(make_spec(8, 2), starting(3), FIVE_MINUTES, 2, id="an attempt that is smaller already"),
    pytest.param(make_spec(), starting(1, 2, Stage.EVALUATE), FIVE_MINUTES, None, id="another stage"),
    pytest.param(make_spec(), starting(2, deleting=True), FIVE_MINUTES, None, id="being stopped"),
    pytest.param(make_spec(), starting(2, suspended=True), FIVE_MINUTES, None, id="queued or evicted"),
    pytest.param(make_spec(), starting(2, started_at="2026-01-01T12:00:01Z"), FIVE_MINUTES, None, id="admitted later"),
]


@pytest.mark.parametrize(("spec", "child", "age", "expected"), FEWER)
def test_an_attempt_that_lacks_workers_is_started_with_fewer(
    spec: Spec, child: ObservedAttempt, age: timedelta, expected: int | None
) -> None:
    assert scale.fewer_nodes(spec, make_attempt(), child, BEGUN + age) == expected


def test_an_attempt_that_has_trained_is_not_changed() -> None:
    trained = make_attempt(first_step_time=STAMP)
    assert scale.fewer_nodes(make_spec(), trained, starting(2), BEGUN + FIVE_MINUTES) is None


TWO = AttemptPlan(nodes=2, reason="two nodes are there")
NEXT = [
    pytest.param(make_spec(), None, AttemptPlan(nodes=4, micro_batch_size=8, gradient_accumulation_steps=1), id="all"),
    pytest.param(
        make_spec(),
        TWO,
        AttemptPlan(nodes=2, micro_batch_size=8, gradient_accumulation_steps=2, reason="two nodes are there"),
        id="after an attempt that lacked workers",
    ),
    pytest.param(
        make_spec(2),
        TWO,
        AttemptPlan(nodes=2, micro_batch_size=16, gradient_accumulation_steps=1),
        id="the spec requests fewer now",
    ),
    pytest.param(
        make_spec(fewest=4),
        TWO,
        AttemptPlan(nodes=4, micro_batch_size=8, gradient_accumulation_steps=1),
        id="the spec does not allow fewer anymore",
    ),
]


@pytest.mark.parametrize(("spec", "decided", "expected"), NEXT)
def test_the_next_attempt_has_all_workers_unless_the_last_one_lacked_some(
    spec: Spec, decided: AttemptPlan | None, expected: AttemptPlan
) -> None:
    assert scale.plan_next(spec, make_status(next_plan=decided)) == expected


@pytest.mark.parametrize(
    ("wanted", "fitting", "memory", "nodes", "expected"),
    [
        (None, 4, "8Gi", 4, (4, 2)),
        (None, 4, "8Gi", 2, (4, 4)),
        (None, 16, "8Gi", 4, (8, 1)),
        (8, 4, "8Gi", 4, (8, 1)),
        (None, None, None, 4, (8, 1)),
        (None, 4, "4Gi", 4, (8, 1)),  # it has been raised since
        (None, 4, "16Gi", 4, (4, 2)),  # it has been lowered since
    ],
)
def test_an_absent_micro_batch_size_is_at_most_what_the_prepare_stage_found_to_fit(
    wanted: int | None, fitting: int | None, memory: str | None, nodes: int, expected: tuple[int, int]
) -> None:
    spec = make_spec(fewest=2, micro=wanted, resources={"limits": {"memory": "8Gi"}})
    resolved = ResolvedStatus(micro_batch_limit=fitting, micro_batch_memory=memory)
    status = make_status(next_plan=AttemptPlan(nodes=nodes), resolved=resolved)
    plan = scale.plan_next(spec, status)
    assert (plan.micro_batch_size, plan.gradient_accumulation_steps) == expected
    if nodes == 4:
        shown = scale.with_batch(make_status(resolved=resolved), spec).run.resolved
        assert shown is not None
        assert (shown.micro_batch_size, shown.gradient_accumulation_steps) == expected


@pytest.mark.parametrize(
    ("workers", "computed_for", "micro"),
    [
        ({"gpusPerNode": 2, "gpuMemory": "80Gi"}, "80Gi per GPU", 2),
        ({"gpusPerNode": 2, "gpuMemory": "81920Mi"}, "80Gi per GPU", 2),
        ({"gpusPerNode": 2, "gpuMemory": "40Gi"}, "80Gi per GPU", 2),  # not more than in a larger one
        ({"gpusPerNode": 2, "gpuMemory": "96Gi"}, "80Gi per GPU", 4),
        ({"gpusPerNode": 2}, "80Gi per GPU", 4),
        # Memory of workers without GPUs, which they had before.
        ({"gpusPerNode": 2, "gpuMemory": "80Gi", "resources": {"limits": {"memory": "80Gi"}}}, "80Gi", 4),
        ({"resources": {"limits": {"memory": "80Gi"}}}, "80Gi per GPU", 8),
    ],
)
def test_the_micro_batch_that_fits_the_gpus_applies_only_to_them(
    workers: dict[str, Any], computed_for: str, micro: int
) -> None:
    status = make_status(resolved=ResolvedStatus(micro_batch_limit=2, micro_batch_memory=computed_for))
    assert scale.plan_next(make_spec(**workers), status).micro_batch_size == micro


def test_a_plan_is_used_once() -> None:
    attempt = AttemptStatus(stage=Stage.TRAIN, number=2, job_name="a2", start_time=STAMP, plan=TWO)
    started = history.record_started(make_status(next_plan=TWO), attempt)
    assert started.run.attempts[-1].plan == TWO
    assert started.run.next_plan is None


PLANS = [
    (32, 4, None, (8, 1)),
    (32, 2, None, (8, 2)),
    (32, 1, None, (8, 4)),
    (24, 3, None, (8, 1)),
    (24, 2, None, (6, 2)),
    (32, 2, 4, (4, 4)),
]


@pytest.mark.parametrize(("total", "nodes", "micro", "expected"), PLANS)
def test_fewer_workers_use_more_micro_batches_and_never_larger_ones(
    total: int, nodes: int, micro: int | None, expected: tuple[int, int]
) -> None:
    training = {"globalBatchSize": total, "microBatchSize": micro}
    full = 3 if total == 24 else 4
    spec = parse_job(make_job(workers={"nodes": full, "minNodes": 1}, training=training)).spec
    plan = world.batch_plan(spec, nodes)
    assert (plan.micro_size, plan.accumulation) == expected
    assert plan.micro_size * plan.accumulation * nodes == total


@pytest.mark.parametrize(
    ("spec", "nodes", "fewest"),
    [
        (make_spec(8, 2), 8, 2),
        (make_spec(8, 4), 4, 4),
        (make_spec(8, None), 8, 8),
        (make_spec(8, 1), 8, 1),
        (make_spec(1), 1, 1),
    ],
)
def test_an_attempt_is_useful_with_the_fewest_workers_that_may_follow_it(spec: Spec, nodes: int, fewest: int) -> None:
    assert scale.fewest_workers(spec, nodes) == fewest


def test_the_next_attempts_keep_a_measured_micro_batch_until_the_spec_changes() -> None:
    """Also one that is larger than the estimated maximum, and with fewer workers as far as it divides their share."""
    workers = {"nodes": 2, "minNodes": 1, "resources": {"limits": {"memory": "2Gi"}}}
    spec = parse_job(make_job(workers=workers, training={"globalBatchSize": 16})).spec
    resolved = ResolvedStatus(micro_batch_limit=2, micro_batch_memory="2Gi")
    before = make_status(stage=Stage.TRAIN, resolved=resolved)
    planned = scale.plan_next(spec, before)
    assert (planned.micro_batch_size, planned.micro_batch_limit) == (2, 2)

    attempt = make_attempt(plan=planned, spec_hash=attempt_hash(spec), job_name="job-r1-train-1")
    reported = Progress(
        stage="train", attempt=1, measured_micro_batch=4, gradient_accumulation=2, micro_batch_reason="measured"
    )
    status = history._with_progress(before.with_run(attempts=(attempt,)), attempt, reported)
    kept = status.run.attempts[0].plan
    assert kept is not None
    assert (kept.micro_batch_size, kept.gradient_accumulation_steps, kept.reason) == (4, 2, "measured")
    assert scale.with_batch(status, spec).run.resolved.micro_batch_size == 4  # type: ignore[union-attr]

    following = scale.plan_next(spec, status)
    assert (following.micro_batch_size, following.micro_batch_limit, following.micro_batch_measured) == (4, 4, True)
    halved = scale.plan_next(spec, status, restart.PlanChange("halved", micro_batch_limit=2))
    assert (halved.micro_batch_size, halved.micro_batch_measured) == (2, True)
    edited = parse_job(make_job(workers=workers | {"sharedMemory": "1Gi"}, training={"globalBatchSize": 16})).spec
    assert scale.plan_next(edited, status).micro_batch_measured is False
