"""What the stages have to know about a tracker. Importable without the libraries of trackers, and without torch."""

import hashlib
import importlib.util
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from ..registry import Registry
from ..store import ObjectStore

EXTRA = "tracking"
"""Extra of the package that installs the libraries."""

QUICK_SECONDS = 5.0
"""How long an attempt waits for a tracker that another process can complete."""

_MAX_MESSAGE = 200
_OBJECT = re.compile(r" object at 0x[0-9a-f]+")
"""In messages of urllib3. It would make equal warnings different."""


class Outcome(StrEnum):
    """Why a session ends."""

    TRAINED = "Trained"
    """The training is complete; the evaluation follows."""
    STOPPED = "Stopped"
    """The next attempt continues."""
    FAILED = "Failed"
    EVALUATED = "Evaluated"
    """The run is complete."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about a run."""

    uri: str
    """Folder of the run."""
    name: str
    """`job-r0001`."""
    attempt: int
    """Number of the attempt, and how often its processes were started before."""
    generation: int
    parameters: Mapping[str, str]
    """Path in the spec, or name of a result of the prepare stage -> value. The same in all attempts."""
    tags: Mapping[str, str]
    """What identifies the run for people."""

    @property
    def key(self) -> str:
        """What identifies the run in a tracker: a digest of `uri`, which may have quotes and other characters."""
        return hashlib.sha256(self.uri.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class LogEntry:
    """An entry of the training log."""

    time: float
    """When it was logged, in seconds since the epoch."""
    values: Mapping[str, float]
    """Has `step` and `epoch`."""

    @property
    def step(self) -> int:
        """Optimizer step."""
        return int(self.values["step"])

    @property
    def metrics(self) -> dict[str, float]:
        """Name for trackers -> value, such as `train/loss` and `validation/accuracy`."""
        return {_name(name): value for name, value in self.values.items() if name not in {"step", "epoch"}}


@dataclass(frozen=True)
class RunResult:
    """The result of the evaluation."""

    step: int
    """Last step of the training."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Such as `test/accuracy`."""
    tags: Mapping[str, str] = field(default_factory=dict)


class Session(ABC):
    """One attempt that is reported to one tracker. Only one thread uses it. Every method may raise any exception."""

    @abstractmethod
    def log(self, entries: Sequence[LogEntry]) -> None:
        """Report entries of the log. If it raises an exception, it is called again with the same entries."""

    @abstractmethod
    def saved(self) -> None:
        """A checkpoint was saved: everything reported so far should survive this process."""

    @abstractmethod
    def result(self, result: RunResult) -> None:
        """Report the result of the evaluation. Only called if the tracker `has_results`."""

    @abstractmethod
    def end(self, outcome: Outcome) -> None:
        """End the session. All entries were reported."""


class Tracker(ABC):
    """Where runs can be reported."""

    name: ClassVar[str]
    """Name of its block in `spec.tracking`."""
    module: ClassVar[str] = ""
    """Module that must be importable. Empty: none."""
    distribution: ClassVar[str] = ""
    """What installs it."""
    has_results: ClassVar[bool]
    """Whether the evaluation is reported too. It then also reports entries of the log that are missing."""
    end_seconds: ClassVar[float] = QUICK_SECONDS
    """How long the end of a training waits for the tracker."""

    def end_seconds_with(self, block: Any) -> float:
        """How long the end of a training waits with these settings. `block`: the block in the spec."""
        del block
        return self.end_seconds

    @property
    def is_installed(self) -> bool:
        """Whether the module exists. It is not imported."""
        return not self.module or importlib.util.find_spec(self.module) is not None

    @property
    def missing_message(self) -> str:
        """What to say if it is not installed."""
        return f"spec.tracking.{self.name} requires {self.distribution}, which this trainer image does not have"

    @abstractmethod
    def open(self, block: Any, run: TrackedRun, store: ObjectStore, scratch: Path) -> Session:
        """Start a session. `block`: the block in the spec; `scratch`: a folder for files of the session.

        A session reports the log from its first step, because the thread gets the log of earlier attempts first.
        """


TRACKERS: Registry[Tracker] = Registry("finetune_trainer.tracking", "spec.tracking")
"""Tracker by name."""


def described(error: Exception) -> str:
    """Return the first line of an error, which may contain the answer of a server, for a warning."""
    first = (str(error).splitlines() or [""])[0]
    text = "".join(letter if letter.isprintable() else "?" for letter in _OBJECT.sub("", first))
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 1]}…"


def _name(name: str) -> str:
    if name.startswith("eval_"):
        return f"validation/{name.removeprefix('eval_')}"
    return f"train/{name}"
