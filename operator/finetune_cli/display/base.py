"""What every display can do."""

from types import TracebackType
from typing import Protocol, Self

from finetune_api.progress import Progress
from finetune_api.v1alpha1 import FineTuneJob


class Display(Protocol):
    """Shows one run. Used as a context manager; `update` may be called several times a second."""

    def update(self, job: FineTuneJob, progress: Progress | None) -> None:
        """The job as it stands, and what rank 0 of the running stage last answered."""

    def event(self, text: str) -> None:
        """Something happened that the status does not say."""

    def finish(self, job: FineTuneJob) -> None:
        """Show the result of a run that has ended or is suspended."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
