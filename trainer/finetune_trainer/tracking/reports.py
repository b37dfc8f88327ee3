"""The trackers of a run, as the stages use them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from finetune_api.scopes import values
from finetune_api.trainer_config import PreparedConfig
from finetune_api.v1alpha1 import ApiModel, Scope, Spec, Tracking

from ..errors import BadConfigError
from ..runtime import RuntimeEnv
from ..store import ObjectStore
from .background import BackgroundSession
from .base import EXTRA, QUICK_SECONDS, TRACKERS, LogEntry, Outcome, RunResult, TrackedRun, Tracker

RESULT_SECONDS = 30.0
"""How long the end of the evaluation waits for trackers, which may get the log of the whole training."""
_MAX_VALUE = 500

Warn = Callable[[str], None]


def requested(tracking: Tracking) -> list[tuple[Tracker, ApiModel]]:
    """Return the trackers of a spec with their blocks."""
    blocks = {str(info.alias): getattr(tracking, name) for name, info in type(tracking).model_fields.items()}
    return [(TRACKERS[name], block) for name, block in blocks.items() if block is not None]


def check_installed(spec: Spec) -> None:
    """Raise BadConfigError if the trainer image lacks the library of a tracker or of the model registry."""
    registry = TRACKERS["mlflow"]
    promote = spec.evaluation.promote
    if promote is not None and promote.mlflow is not None and not registry.is_installed:
        path = "spec.evaluation.promote.mlflow"
        raise BadConfigError(
            f"{path} requires {registry.distribution}, which this trainer image does not have",
            advice=f"use an image with finetune-operator[{EXTRA}], or remove {path}",
        )
    for tracker, _ in requested(spec.tracking):
        if not tracker.is_installed:
            raise BadConfigError(
                tracker.missing_message,
                advice=f"use an image with finetune-operator[{EXTRA}], or remove spec.tracking.{tracker.name}",
            )


@dataclass
class RunReports:
    """Reports a run to its trackers. No method waits but `join`."""

    sessions: Sequence[BackgroundSession] = ()
    warn: Warn = field(default=lambda _: None)

    def log(self, values: Mapping[str, float]) -> None:
        """Report an entry of the training log, and add warnings about trackers."""
        for session in self.sessions:
            session.log(LogEntry(time.time(), dict(values)))
        self._pass_warnings()

    def saved(self) -> None:
        """A checkpoint was saved."""
        for session in self.sessions:
            session.saved()

    def end(self, outcome: Outcome, result: RunResult | None = None) -> None:
        """No entry follows."""
        for session in self.sessions:
            session.end(outcome, result)

    def abandon(self) -> None:
        """Report nothing more: a newer attempt owns the run."""
        for session in self.sessions:
            session.abandon()

    def join(self, *, quickly: bool = False) -> None:
        """Wait until everything is reported, for each session as long as it allows; `quickly`: for some seconds."""
        for session in self.sessions:
            session.join(QUICK_SECONDS if quickly else None)
        self._pass_warnings()

    def _pass_warnings(self) -> None:
        for session in self.sessions:
            for warning in session.new_warnings():
                self.warn(warning)


def open_reports(
    config: PreparedConfig,
    store: ObjectStore,
    runtime: RuntimeEnv,
    history: Iterable[Mapping[str, float]],
    warn: Warn,
    *,
    for_results: bool = False,
) -> RunReports:
    """Start the trackers of a run. `history`: the training log so far.

    A tracker whose library is missing is a warning here: prepare has refused it, but the spec or the image may have
    been changed since. `for_results`: only trackers that get the result of the evaluation.
    """
    now = time.time()
    entries = [LogEntry(now, dict(each)) for each in history]
    run = _tracked(config)
    sessions = []
    for tracker, block in requested(config.spec.tracking):
        if for_results and not tracker.has_results:
            continue
        if not tracker.is_installed:
            warn(tracker.missing_message)
            continue
        scratch = runtime.scratch / "tracking" / tracker.name
        scratch.mkdir(parents=True, exist_ok=True)
        opened: Any = partial(tracker.open, block, run, store, scratch)
        seconds = RESULT_SECONDS if for_results else tracker.end_seconds_with(block)
        is_completed = tracker.has_results and not for_results
        session = BackgroundSession(tracker.name, opened, entries, end_seconds=seconds, is_completed_later=is_completed)
        sessions.append(session)
    return RunReports(sessions, warn)


def _tracked(config: PreparedConfig) -> TrackedRun:
    prepared = config.prepared
    facts = {
        "dataset_digest": prepared.dataset_digest,
        "model_digest": prepared.model_digest,
        "task": str(prepared.task),
        "parameters": str(prepared.parameters),
        **{f"rows.{split}": str(rows) for split, rows in prepared.counts.model_dump().items()},
    }
    # Parameters of MLflow cannot change, so they are those of the scopes that determine the run.
    spec = values(config.spec, {Scope.DATA, Scope.RUN}, max_length=_MAX_VALUE)
    return TrackedRun(
        uri=config.run_uri,
        name=f"{config.job.name}-{config.run_name}",
        attempt=config.attempt,
        generation=config.generation or 0,
        parameters={path.removeprefix("spec.").removesuffix("[]"): value for path, value in spec.items()} | facts,
        tags={
            "finetune.job": f"{config.job.namespace}/{config.job.name}",
            "finetune.run": str(config.run),
            "finetune.uri": config.run_uri,
        },
    )
