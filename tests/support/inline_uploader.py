"""An uploader without a process: executes each order immediately, with the store of the test."""

from collections import deque

from finetune_trainer.checkpoint.format.orders import Answer, Order
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from finetune_trainer.checkpoint.upload.shared_memory import SharedMemory
from finetune_trainer.checkpoint.upload.uploader import Pace, execute_order
from finetune_trainer.errors import TrainerError
from finetune_trainer.failures import Failure


class InlineUploader:
    """An UploaderClient that does not retry: every failure is final."""

    def __init__(self, storage: RunStorage) -> None:
        self.snapshot = SharedMemory()
        self._storage = storage
        self._answers: deque[Answer] = deque()

    def prepare(self) -> None:
        """Do nothing: it is always ready."""

    def send(self, order: Order) -> None:
        try:
            self._answers.append(execute_order(self._storage, order, self.snapshot, Pace()))
        except TrainerError as error:
            self._answers.append(Answer(failure=Failure.of(error), is_final=True))

    def receive(self, timeout: float) -> Answer | None:
        return self._answers.popleft() if self._answers else None

    def expedite(self) -> None:
        """Do nothing: it always runs at full speed."""

    def raise_priority(self) -> None:
        """Do nothing: it has no process."""

    def restore_priority(self) -> None:
        """Do nothing: it has no process."""

    def close(self) -> None:
        self.snapshot.close()
