"""Derives the exit code and the termination message of a pod from the exits of its ranks. Pure."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exit_codes import ExitCode, name_of, out_of_memory_advice
from finetune_api.progress import Progress, TerminationMessage

SETTLE_SECONDS = 1.0
"""Ranks that exit within this time of each other may have failed for the same reason."""

KEPT_LINES = 20
"""Log lines of the failed rank in a termination message."""


@dataclass(frozen=True)
class RankExit:
    """Exit of one rank."""

    rank: int
    code: int
    """Exit status; negative: the signal that terminated the rank."""
    at: float
    """Monotonic seconds."""
    ended_by_us: bool = False
    """The supervisor terminated it, because another rank had failed or a stop came before all ranks had started."""
    error: str = ""
    """Why the fork server could not start the rank, or no longer runs it; empty otherwise."""


def decisive_exit(exits: Sequence[RankExit]) -> RankExit | None:
    """Return the exit that determines the pod's: the first failure, else the first stop, else None.

    When a rank fails, the connections of the other ranks break, and they fail with an internal error, sometimes shortly
    before the exit of the first rank is seen. A failure with a specific code is therefore preferred to an internal
    error up to SETTLE_SECONDS before it.
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
    """Return the pod's exit status: 128+n for signal n, OUT_OF_MEMORY if the kernel killed a process for memory.

    The killed process may be the fork server, which is as large as a rank; its ranks are then killed too.
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
    """Return the pod's termination message: `result` of the decisive rank, completed with what the supervisor knows."""
    message = result or TerminationMessage(stage=stage, exit_code=status)
    changes: dict[str, object] = {"stage": stage, "exit_code": status, "progress": message.progress or progress}
    if decisive is not None:
        changes["rank"] = decisive.rank
        if status != ExitCode.STOPPED:
            changes["last_lines"] = tuple(last_lines)[-KEPT_LINES:]
        if result is None or status != result.exit_code:
            changes |= _explanation(decisive, stage, status)
    return message.model_copy(update=changes)


def _explanation(exit_: RankExit, stage: str, status: int) -> dict[str, str]:
    """Return error and advice for a rank that could not write them."""
    rank = f"rank {exit_.rank}"
    if status == ExitCode.OUT_OF_MEMORY:
        return {
            "error": f"{rank} was killed by the kernel because the pod reached its memory limit",
            "advice": out_of_memory_advice(stage),
        }
    if exit_.error:
        return {"error": f"{rank} could not run: {exit_.error}"}
    if exit_.code < 0:
        return {"error": f"{rank} was terminated by signal {-exit_.code} ({_signal_name(-exit_.code)})"}
    return {"error": f"{rank} exited with code {exit_.code} ({name_of(exit_.code)}) without a result"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
