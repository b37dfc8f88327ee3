"""The epoch's order as a torch Sampler."""

from collections.abc import Iterator

from torch.utils.data import Sampler

from .order import Lengths, epoch_order


class SeededSampler(Sampler[int]):
    """Yields all rows in the order of the current epoch. It knows nothing of ranks or of the position in the epoch:
    batches are dealt out, and those already trained on are skipped, by the Trainer."""

    def __init__(self, lengths: Lengths, *, seed: int, batch_size: int, grouped: bool) -> None:
        self._lengths = lengths
        self._seed = seed
        self._batch_size = batch_size
        self._grouped = grouped
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(
            self._lengths, seed=self._seed, epoch=self.epoch, batch_size=self._batch_size, grouped=self._grouped
        )
        return iter(order.tolist())
