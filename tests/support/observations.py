"""Snapshots of a job's children for tests of the policies: one pod or stage, with the fields that the test sets."""

from typing import Any

from finetune_api.constants import Stage
from finetune_operator.observed import ObservedAttempt, ObservedPod

STAMP = "2026-01-01T12:00:00Z"
"""Creation time of everything, and end time of everything that has ended."""


def make_pod(index: int = 0, exit_code: int | None = None, **fields: Any) -> ObservedPod:
    """A pod that is running, or that has ended with `exit_code`."""
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


def make_stage(stage: Stage = Stage.TRAIN, attempt: int = 1, ended: str = "", **fields: Any) -> ObservedAttempt:
    """A stage that is running, or that has the terminal condition `ended`."""
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
    return ObservedAttempt(**(defaults | fields))
