"""How many workers a training attempt gets: all that the spec asks for, or as many as could be had."""

from datetime import datetime, timedelta

from finetune_api.constants import Stage
from finetune_api.rules import divides_batch
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Spec, Status
from finetune_api.v1alpha1.quantities import seconds
from finetune_api.v1alpha1.workers import DEFAULT_START_TIMEOUT

from ..observed import ObservedStage
from .pending import attempt_hash
from .restart import PlanChange
from .world import batch_plan


def plan_next(spec: Spec, status: Status, change: PlanChange | None = None) -> AttemptPlan:
    """Plan of the next training attempt: what was decided before the last one was stopped, else what the spec asks for.

    So an attempt has fewer workers only where the one before it was stopped because it lacked some. After any other
    end all of them are tried again: nodes may have come back. A limit of the micro-batch holds until the spec changes.
    """
    decided = status.run.next_plan
    is_possible = decided is not None and decided.nodes in _smaller_worlds(spec, spec.workers.nodes)
    nodes = decided.nodes if decided is not None and is_possible else spec.workers.nodes
    before = last_training(status)
    is_same_spec = before is not None and before.spec_hash in {"", attempt_hash(spec)}
    limit = before.plan.micro_batch_limit if before is not None and before.plan is not None and is_same_spec else None
    reasons = [decided.reason] if decided is not None and is_possible else []
    if change is not None:
        limit = change.micro_batch_limit or limit
        reasons.append(change.reason)
    batch = batch_plan(spec, nodes, limit)
    return AttemptPlan(
        nodes=nodes,
        micro_batch_size=batch.micro_size,
        gradient_accumulation_steps=batch.accumulation,
        micro_batch_limit=limit,
        reason="; ".join(reasons),
    )


def fewer_nodes(spec: Spec, attempt: AttemptStatus, stage: ObservedStage, now: datetime) -> int | None:
    """With how many workers to begin instead, where this attempt's do not all run within the start time-out.

    None where they do, where there is time left, or where too few of them run for any world that the spec allows: they
    go on waiting then.
    """
    if stage.stage is not Stage.TRAIN or stage.deleting or attempt.first_step_time:
        return None
    if now < datetime.fromisoformat(stage.created_at) + timedelta(seconds=seconds(_timeout(spec))):
        return None
    running = sum(pod.phase == "Running" for pod in stage.pods)
    if running == stage.expected_pods or stage.ending or stage.failing:
        return None
    worlds = _smaller_worlds(spec, stage.expected_pods)
    return max((nodes for nodes in worlds if nodes <= running), default=None)


def seconds_to_timeout(spec: Spec, stage: ObservedStage, now: datetime) -> float | None:
    """Until fewer workers may be chosen; None where they never are, or may be already."""
    if spec.workers.min_nodes is None or stage.stage is not Stage.TRAIN:
        return None
    until = datetime.fromisoformat(stage.created_at) + timedelta(seconds=seconds(_timeout(spec)))
    return (until - now).total_seconds() if until > now else None


def explanation(spec: Spec, attempt: AttemptStatus, fewer: int) -> str:
    """Why an attempt is stopped for one with fewer workers."""
    nodes = attempt.plan.nodes if attempt.plan else spec.workers.nodes
    return (
        f"the {nodes} workers of train attempt {attempt.number} did not all run within "
        f"spec.workers.startTimeout of {_timeout(spec)}; the next attempt starts with {fewer}"
    )


def _smaller_worlds(spec: Spec, nodes: int) -> tuple[int, ...]:
    """Numbers of workers below `nodes` that the spec allows and that can share its global batch."""
    fewest = spec.workers.min_nodes or spec.workers.nodes
    return tuple(number for number in range(fewest, nodes) if divides_batch(spec, number))


def _timeout(spec: Spec) -> str:
    return spec.workers.start_timeout or DEFAULT_START_TIMEOUT


def last_training(status: Status) -> AttemptStatus | None:
    """The newest attempt at the training."""
    trainings = [attempt for attempt in status.run.attempts if attempt.stage is Stage.TRAIN]
    return trainings[-1] if trainings else None
