"""From how the ranks of a pod ended to one exit code and one termination message. Pure."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exit_codes import ExitCode, name_of
from finetune_api.progress import Progress, TerminationMessage

SETTLE_SECONDS = 1.0
"""Ranks that end within this time of each other may have ended for the same cause."""

KEPT_LINES = 20
"""Log lines of the failed rank in a termination message."""


@dataclass(frozen=True)
class RankExit:
    """How one rank ended."""

    rank: int
    code: int
    """Exit status; negative: the signal that ended it."""
    at: float
    """Monotonic seconds."""
    ended_by_us: bool = False
    """True: it was ended because another one had failed before, or was called off."""
    error: str = ""
    """Why there was no rank, where the fork server could not make one."""


def decisive_exit(exits: Sequence[RankExit]) -> RankExit | None:
    """The exit that the pod's own is about: the first failure, or else the first stop; None if all is done.

    A rank that fails takes its peers with it: they see a broken connection and end with an internal error, sometimes
    seen a moment before the cause. So an exit that names its cause is preferred to an internal error just before it.
    """
    ended = sorted((one for one in exits if one.code != ExitCode.DONE), key=lambda one: one.at)
    failures = [one for one in ended if one.code != ExitCode.STOPPED and not one.ended_by_us]
    if not failures:
        return ended[0] if ended else None
    first = failures[0]
    if first.code != ExitCode.INTERNAL_ERROR:
        return first
    causes = (one for one in failures if one.code != ExitCode.INTERNAL_ERROR and one.at - first.at <= SETTLE_SECONDS)
    return next(causes, first)


def exit_status(ended: RankExit, *, memory_kills: int) -> int:
    """Status for the pod: 128+n for a rank ended by signal n, OUT_OF_MEMORY where the kernel did it for memory.

    It may have done it to the fork server: that one is as large as a rank, and its ranks end with it.
    """
    if memory_kills > 0 and (ended.code == -signal.SIGKILL or ended.error):
        return ExitCode.OUT_OF_MEMORY
    return ended.code if ended.code >= 0 else 128 - ended.code


def termination_message(
    decisive: RankExit | None,
    result: TerminationMessage | None,
    *,
    stage: str,
    status: int,
    last_lines: Sequence[str],
    progress: Progress,
) -> TerminationMessage:
    """The pod's last word: what the decisive rank has left (`result`), completed by what only its parent can know."""
    message = result or TerminationMessage(stage=stage, exit_code=status)
    changes: dict[str, object] = {"stage": stage, "exit_code": status, "progress": message.progress or progress}
    if decisive is not None:
        changes["rank"] = decisive.rank
        if status != ExitCode.STOPPED:
            changes["last_lines"] = tuple(last_lines)[-KEPT_LINES:]
        if result is None or status != result.exit_code:
            changes |= _explanation(decisive, status)
    return message.model_copy(update=changes)


def _explanation(exit_: RankExit, status: int) -> dict[str, str]:
    """Error and advice for a rank that had no time to write its own."""
    rank = f"rank {exit_.rank}"
    if status == ExitCode.OUT_OF_MEMORY:
        return {
            "error": f"{rank} was killed by the kernel because the pod's memory was used up",
            "advice": "raise spec.workers.resources.limits.memory, or lower spec.training.microBatchSize",
        }
    if exit_.error:
        return {"error": f"{rank} could not run: {exit_.error}"}
    if exit_.code < 0:
        return {"error": f"{rank} was ended by signal {-exit_.code} ({_signal_name(-exit_.code)})"}
    return {"error": f"{rank} ended with exit code {exit_.code} ({name_of(exit_.code)}) and left no result"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
