"""The interface of displays."""

from types import TracebackType
from typing import Protocol, Self

from finetune_api.progress import Progress
from finetune_api.v1alpha1 import FineTuneJob


class Display(Protocol):
    """Shows one run. Used as a context manager; `update` may be called several times a second."""

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        """Show the current job and the latest progress of rank 0 of the running stage."""

    def event(self, text: str) -> None:
        """Show an event that is not in the status."""

    def finish(self, job: FineTuneJob) -> None:
        """Show the result of a run that has ended or is suspended."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
