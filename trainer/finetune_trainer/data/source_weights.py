"""`spec.data.train[].weight`: how often the records of each source are in the training split. Pure.

A weight of 2.3 is two copies of every record, and a third copy of 30 % of them. The sample is the first records of the
source in key order, which is random but depends on `training.seed` and the content of records alone (see `splits`). So
it does not depend on files, blocks or processes, and most of it stays the same when records are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.v1alpha1 import Spec

from .info import WeightInfo
from .readers import file_type
from .sources import SourceFile
from .splits import ranks_in_groups

NAME = "weights"


@dataclass(frozen=True)
class Parameters:
    """Part of the digest of the dataset: addresses are not part of it, as for other files."""

    sources: tuple[tuple[float, tuple[tuple[str, str], ...]], ...]
    """Weight of each source with another weight than 1, and types and digests of its files, sorted."""


def parameters(spec: Spec, files: Sequence[SourceFile]) -> Parameters | None:
    """None: every record is in an epoch once. `files` are those of `spec.data.train`."""
    weighted = {index: source.weight for index, source in enumerate(spec.data.train) if source.weight != 1}
    if not weighted:
        return None
    contents = {
        index: tuple(sorted((file_type(file), file.sha256) for file in files if file.source == index))
        for index in weighted
    }
    return Parameters(tuple(sorted((weight, contents[index]) for index, weight in weighted.items())))


class Repeats:
    """Decides how often each row of the training split is written. It gets the rows in key order, in parts."""

    def __init__(self, weights: Sequence[float], sizes: NDArray[np.int64]) -> None:
        """`weights` and `sizes` (sources,): weight and number of rows of each source.

        A source keeps at least one row, so that a small weight does not remove it.
        """
        self._copies = np.floor(weights).astype(np.int64)
        total = np.maximum(np.floor(np.asarray(weights) * sizes + 0.5).astype(np.int64), sizes > 0)
        self._sampled = total - self._copies * sizes
        self._weights, self._sizes, self._total = weights, sizes, total
        self._seen = np.zeros(len(sizes), dtype=np.int64)

    def take(self, sources: NDArray[np.int64], is_usable: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """How often to write each of the next rows; `sources` (rows,) has the index of the source of each. Rows that
        are not usable, because no token carries loss, are not part of any sample: they are counted once."""
        found = np.ones(len(sources), dtype=np.uint8)
        usable = sources[is_usable]
        is_sampled = ranks_in_groups(usable, self._seen) < self._sampled[usable]
        found[is_usable] = self._copies[usable] + is_sampled
        self._seen += np.bincount(usable, minlength=len(self._seen))
        return found

    @property
    def left_out(self) -> int:
        """Number of rows that are not written."""
        return int(np.where(self._copies == 0, self._sizes - self._total, 0).sum())

    def info(self, spec: Spec) -> tuple[WeightInfo, ...]:
        """For dataset.json: all sources, in the order of the spec."""
        return tuple(
            WeightInfo(uri=source.uri, weight=source.weight, before=before, after=after)
            for source, before, after in zip(spec.data.train, self._sizes.tolist(), self._total.tolist(), strict=True)
        )
