"""An uploader without a process: orders are carried out as they are given, against a store that a test has prepared."""

from collections import deque

from finetune_trainer.checkpoint.format.failures import Failure
from finetune_trainer.checkpoint.format.orders import Answer, Order
from finetune_trainer.checkpoint.stored.places import RunStorage
from finetune_trainer.checkpoint.upload import deposit
from finetune_trainer.checkpoint.upload.pace import Pace
from finetune_trainer.checkpoint.upload.shared_memory import SharedMemory
from finetune_trainer.errors import TrainerError


class InlineCarrier:
    """A Carrier. It does not try again: every failure is final."""

    def __init__(self, storage: RunStorage) -> None:
        self.snapshot = SharedMemory()
        self._storage = storage
        self._answers: deque[Answer] = deque()

    def prepare(self) -> None:
        """It is always ready."""

    def send(self, order: Order) -> None:
        try:
            self._answers.append(deposit.carry_out(self._storage, order, self.snapshot, Pace()))
        except TrainerError as error:
            self._answers.append(Answer(failure=Failure.of(error), is_final=True))

    def receive(self, timeout: float) -> Answer | None:
        return self._answers.popleft() if self._answers else None

    def hurry(self) -> None:
        """It has no other pace."""

    def favour(self) -> None:
        """It has no other priority."""

    def relax(self) -> None:
        """It has no other priority."""

    def close(self) -> None:
        self.snapshot.close()
