"""What a pass sees of a job's children, for tests of the policies: one pod or stage, with what the test says of it."""

from typing import Any

from finetune_api.constants import Stage
from finetune_operator.observed import ObservedPod, ObservedStage

STAMP = "2026-01-01T12:00:00Z"
"""When everything was created, and when what has ended did."""


def make_pod(index: int = 0, exit_code: int | None = None, **fields: Any) -> ObservedPod:
    """One that runs, or that has ended with `exit_code`."""
    defaults: dict[str, Any] = {
        "name": f"pod-{index}",
        "index": index,
        "phase": "Running" if exit_code is None else "Failed" if exit_code else "Succeeded",
        "exit_code": exit_code,
        "finished_at": "" if exit_code is None else STAMP,
        "message": None,
        "raw_message": "",
        "disrupted": False,
        "created_at": STAMP,
    }
    return ObservedPod(**(defaults | fields))


def make_stage(stage: Stage = Stage.TRAIN, attempt: int = 1, ended: str = "", **fields: Any) -> ObservedStage:
    """One that runs; `ended` names the terminal condition of one that does not."""
    defaults: dict[str, Any] = {
        "stage": stage,
        "run": 1,
        "attempt": attempt,
        "job_name": f"example-r1-{stage}-a{attempt}",
        "uid": f"uid-{stage}-{attempt}",
        "created_at": STAMP,
        "ended_at": STAMP if ended else "",
        "succeeded": ended == "Complete",
        "failed": ended == "Failed",
        "deleting": False,
        "pods": (),
    }
    return ObservedStage(**(defaults | fields))
