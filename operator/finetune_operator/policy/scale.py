"""How many workers a training attempt gets: all that the spec asks for, or as many as could be had."""

from datetime import datetime, timedelta

from finetune_api.constants import Stage
from finetune_api.rules import divides_batch
from finetune_api.v1alpha1 import AttemptStatus, Spec, Status
from finetune_api.v1alpha1.quantities import seconds

from ..observed import ObservedStage

_START_TIMEOUT = "5m"
"""Time for a node to come up and an image of some GB to be pulled, and little beside hours of training."""


def next_nodes(spec: Spec, status: Status) -> int:
    """Workers of the next training attempt: fewer only where the last one was stopped because it lacked some.

    Whatever else has ended it, all are tried for again: nodes may have come back.
    """
    last = last_training(status)
    fewer = None if last is None else last.fewer_nodes
    return fewer if fewer in _smaller_worlds(spec, spec.workers.nodes) else spec.workers.nodes


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
    return (
        f"the {attempt.nodes} workers of train attempt {attempt.number} did not all run within "
        f"spec.workers.startTimeout of {_timeout(spec)}; the next attempt starts with {fewer}"
    )


def _smaller_worlds(spec: Spec, nodes: int) -> tuple[int, ...]:
    """Numbers of workers below `nodes` that the spec allows and that can share its global batch."""
    fewest = spec.workers.min_nodes or spec.workers.nodes
    return tuple(number for number in range(fewest, nodes) if divides_batch(spec, number))


def _timeout(spec: Spec) -> str:
    return spec.workers.start_timeout or _START_TIMEOUT


def last_training(status: Status) -> AttemptStatus | None:
    """The newest attempt at the training."""
    trainings = [attempt for attempt in status.attempts if attempt.stage is Stage.TRAIN]
    return trainings[-1] if trainings else None
