"""Polls of the source files of a run that has ended, `spec.data.poll`.

A poll is a Job of its own. It is not an attempt of the run, and the run stays complete. Its Job is deleted when its
result has been recorded.
"""

from collections.abc import Iterator
from datetime import datetime

from finetune_api.clock import time_after
from finetune_api.constants import Stage
from finetune_api.v1alpha1 import FineTuneJob, PollStatus, Spec, Status
from finetune_api.v1alpha1.quantities import seconds
from finetune_api.v1alpha1.status import MAX_POLL_MESSAGE

from ..observed import Observed, ObservedAttempt
from ..settings import OperatorSettings
from .actions import Action, CreateChildren, DeleteJob
from .world import evaluation_needs, stage_config


def found_change(status: Status, spec: Spec, observed: Observed) -> bool:
    """Whether a poll of the current run has ended and found other files than the run was prepared from."""
    known = _known_digest(status)
    digests = [_digest(poll) for poll in _ended(status, observed)]
    return spec.data.poll is not None and bool(known) and any(digest not in {"", known} for digest in digests)


def with_results(status: Status, observed: Observed, now: str) -> Status:
    """Return the status with the polls of the current run that have ended."""
    for poll in _ended(status, observed):
        before = status.poll or PollStatus()
        if poll.attempt <= before.number:
            continue  # recorded before; its Job is being deleted
        digest = _digest(poll)
        message = "" if digest else _failure(poll)
        found = PollStatus(
            number=poll.attempt,
            last_time=now,
            message=message[:MAX_POLL_MESSAGE],
            source_digest=digest or before.source_digest,
        )
        status = status.model_copy(update={"poll": found})
        resolved = status.run.resolved
        if digest and resolved is not None and not resolved.source_digest:
            # An earlier version prepared the run: from now on, changes are compared with this listing.
            status = status.with_run(resolved=resolved.model_copy(update={"source_digest": digest}))
    return status


def next_time(spec: Spec, status: Status) -> datetime | None:
    """Return when the next poll starts; None: none, because the run has not ended, or was never prepared."""
    if spec.data.poll is None or spec.suspend or status.terminal_condition is None:
        return None
    if status.run.resolved is None and not _known_digest(status):
        return None
    started = [status.poll.last_time if status.poll else None, status.run.completion_time]
    last = max((time for time in started if time), default=None)
    return None if last is None else time_after(last, seconds(spec.data.poll))


def actions(
    job: FineTuneJob, status: Status, observed: Observed, settings: OperatorSettings, now: datetime
) -> Iterator[Action]:
    """Yield the changes of the Jobs of polls. `status` is that after the step, and `job.status` the one that was read.

    The Job of a poll is deleted when the object has its result: a failed write must not lose it.
    """
    recorded = job.status.poll.number if job.status.poll else 0
    for poll in observed.polls:
        is_useless = poll.run != job.status.run.number or next_time(job.spec, job.status) is None
        if not poll.deleting and (is_useless or (not poll.active and poll.attempt <= recorded)):
            yield DeleteJob(poll.job_name, poll.uid)
    due_at = next_time(job.spec, status)
    if due_at is None or due_at > now or unfinished(status, observed):
        return
    number = 1 + (status.poll.number if status.poll else 0)
    config = stage_config(job, status.run.number, Stage.POLL, number, settings.storage)
    yield CreateChildren(config, evaluation_needs(None))


def unfinished(status: Status, observed: Observed) -> tuple[ObservedAttempt, ...]:
    """Return the polls whose Jobs must end or be deleted first. One on a lost node is given up when it is recorded."""
    recorded = status.poll.number if status.poll else 0
    return tuple(poll for poll in observed.polls if not (poll.lost and poll.attempt <= recorded))


def _known_digest(status: Status) -> str:
    """Return the listing that polls are compared with: that of the run, or the last one if prepare has failed."""
    if status.run.resolved is not None:
        return status.run.resolved.source_digest
    return "" if status.poll is None else status.poll.source_digest


def _ended(status: Status, observed: Observed) -> tuple[ObservedAttempt, ...]:
    return tuple(poll for poll in observed.polls if not poll.active and poll.run == status.run.number)


def _digest(poll: ObservedAttempt) -> str:
    """Return the digest that a poll has reported; empty if it failed."""
    messages = (pod.message for pod in poll.pods if poll.succeeded)
    return next((found.polled.source_digest for found in messages if found is not None and found.polled), "")


def _failure(poll: ObservedAttempt) -> str:
    errors = (pod.message.error or pod.message.advice for pod in poll.pods if pod.message is not None)
    reasons = (pod.kubelet_message or pod.waiting or pod.raw_message for pod in poll.pods)
    return next((text for text in (*errors, *reasons) if text), f"{poll.job_name} failed").partition("\n")[0]
