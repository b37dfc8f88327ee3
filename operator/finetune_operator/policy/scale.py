"""Number of workers of a training attempt: all that the spec requests, or fewer if not all can be started."""

from datetime import datetime

from finetune_api.clock import time_after
from finetune_api.constants import Stage
from finetune_api.rules import divides_batch, limits_micro_batch
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Spec, Status
from finetune_api.v1alpha1.quantities import seconds
from finetune_api.v1alpha1.workers import DEFAULT_START_TIMEOUT

from ..observed import ObservedAttempt
from .pending import attempt_hash
from .restart import PlanChange
from .world import batch_plan


def plan_next(spec: Spec, status: Status, change: PlanChange | None = None) -> AttemptPlan:
    """Return the plan of the next training attempt: the one recorded in status, else that of the spec.

    An attempt has fewer workers only if the attempt before it was stopped because workers were missing. After any other
    end, all workers are requested again, because nodes may be available again. A limit of the micro-batch size that a
    restart rule has set, or that a training attempt has measured, applies until the spec changes.
    """
    decided = status.run.next_plan
    is_possible = decided is not None and decided.nodes in _smaller_worlds(spec, spec.workers.nodes)
    nodes = decided.nodes if decided is not None and is_possible else spec.workers.nodes
    before = last_training(status)
    is_same_spec = before is not None and before.spec_hash in {"", attempt_hash(spec)}
    kept = before.plan if before is not None and is_same_spec else None
    is_measured = kept is not None and kept.micro_batch_measured
    # A measurement replaces the estimate, which may be lower.
    limits = [] if is_measured else [micro_batch_limit(spec, status)]
    if kept is not None:
        limits.append(kept.micro_batch_limit)
    reasons = [decided.reason] if decided is not None and is_possible else []
    if change is not None:
        limits.append(change.micro_batch_limit)
        reasons.append(change.reason)
    limit = min((size for size in limits if size is not None), default=None)
    batch = batch_plan(spec, nodes, limit)
    return AttemptPlan(
        nodes=nodes,
        micro_batch_size=batch.micro_size,
        gradient_accumulation_steps=batch.accumulation,
        micro_batch_limit=limit,
        micro_batch_measured=is_measured,
        reason="; ".join(reasons),
    )


def micro_batch_limit(spec: Spec, status: Status) -> int | None:
    """Return the micro-batch size that the prepare stage has found to fit the memory, if the spec has none.

    None if the memory of the workers or of their GPUs is larger now.
    """
    resolved = status.run.resolved
    if resolved is None or spec.training.micro_batch_size is not None:
        return None
    return resolved.micro_batch_limit if limits_micro_batch(spec, resolved.micro_batch_memory) else None


def with_batch(status: Status, spec: Spec) -> Status:
    """Record the division of the global batch among the workers of the last or next training attempt in status."""
    if status.run.resolved is None:
        return status
    last = last_training(status)
    plan = None if last is None else last.plan
    if plan is None or plan.micro_batch_size is None:
        batch = batch_plan(spec, micro_batch_limit=micro_batch_limit(spec, status))
        plan = AttemptPlan(nodes=1, micro_batch_size=batch.micro_size, gradient_accumulation_steps=batch.accumulation)
    # Not computed from the plan's nodes: with the GPUs of an edited spec they may not divide the batch.
    batch_fields = ("micro_batch_size", "gradient_accumulation_steps")
    resolved = status.run.resolved.model_copy(update={name: getattr(plan, name) for name in batch_fields})
    return status.with_run(resolved=resolved)


def fewer_nodes(spec: Spec, attempt: AttemptStatus, child: ObservedAttempt, now: datetime) -> int | None:
    """Return a smaller number of workers for the next attempt if not all pods are running after the start timeout.

    None if all are running, if the timeout has not been reached, or if fewer are running than the spec allows. In the
    last case the pods continue to wait.
    """
    if child.stage is not Stage.TRAIN or child.deleting or child.suspended or attempt.first_step_time:
        return None
    if now < time_after(child.expected_since, seconds(_timeout(spec))):
        return None
    running = sum(pod.phase == "Running" for pod in child.pods)
    if running == child.expected_pods or child.ending or child.failing:
        return None
    worlds = _smaller_worlds(spec, child.expected_pods)
    return max((nodes for nodes in worlds if nodes <= running), default=None)


def seconds_to_timeout(spec: Spec, child: ObservedAttempt, now: datetime) -> float | None:
    """Return the seconds until the start timeout; None without one, or after it."""
    if spec.workers.min_nodes is None or child.stage is not Stage.TRAIN or child.suspended:
        return None
    until = time_after(child.expected_since, seconds(_timeout(spec)))
    return (until - now).total_seconds() if until > now else None


def explanation(spec: Spec, attempt: AttemptStatus, fewer: int) -> str:
    """Return why an attempt is stopped and restarted with fewer workers."""
    nodes = attempt.plan.nodes if attempt.plan else spec.workers.nodes
    return (
        f"the {nodes} workers of train attempt {attempt.number} were not all running within "
        f"spec.workers.startTimeout of {_timeout(spec)}; the next attempt starts with {fewer}"
    )


def fewest_workers(spec: Spec, nodes: int) -> int:
    """Return the smallest number of workers with which an attempt of `nodes` workers is useful.

    If fewer can be placed on nodes, they only hold resources. If this many can, they wait for the others until the
    start timeout, after which an attempt continues without the others.
    """
    return min(spec.workers.min_nodes or nodes, nodes)


def _smaller_worlds(spec: Spec, nodes: int) -> tuple[int, ...]:
    """Return the numbers of workers below `nodes` that the spec allows and that divide the global batch."""
    fewest = spec.workers.min_nodes or spec.workers.nodes
    return tuple(number for number in range(fewest, nodes) if divides_batch(spec, number))


def _timeout(spec: Spec) -> str:
    return spec.workers.start_timeout or DEFAULT_START_TIMEOUT


def last_training(status: Status) -> AttemptStatus | None:
    """Return the newest training attempt."""
    trainings = [attempt for attempt in status.run.attempts if attempt.stage is Stage.TRAIN]
    return trainings[-1] if trainings else None
