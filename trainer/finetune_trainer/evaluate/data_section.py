"""What report and model card say of the data set. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..data.info import DatasetInfo

_MOST_BINS = 24
_NICE = (1, 2, 5)


@dataclass(frozen=True)
class DataSection:
    """Counts of the data set that are for people."""

    dropped: tuple[tuple[str, int], ...] = ()
    """Rule -> records left out by it, most frequent first."""
    truncated: int = 0
    """Examples that were cut to the maximal length, in all splits."""
    max_length: int = 0
    """That length in tokens."""
    tokens: int = 0
    """Tokens of all examples before anything was cut or left out for its length, in all splits."""
    dropped_tokens: int = 0
    """How many of them were not used."""
    edges: tuple[int, ...] = ()
    """Bounds of the length histogram of the training split, in tokens; one more than bars."""
    histogram: tuple[int, ...] = ()
    """Examples between two bounds: the lower one is counted, the upper one is not."""
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: DatasetInfo) -> "DataSection":
        """From dataset.json."""
        edges, histogram = length_histogram(info.lengths.get("train", {}))
        return cls(
            dropped=tuple(sorted(info.dropped.items(), key=lambda item: (-item[1], item[0]))),
            truncated=sum(info.truncated.values()),
            max_length=info.max_length,
            tokens=sum(info.tokens.values()),
            dropped_tokens=sum(info.dropped_tokens.values()),
            edges=edges,
            histogram=histogram,
            remarks=info.remarks,
        )


def length_histogram(lengths: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bounds and counts of at most 24 bars of equal, round width, from `{tokens: rows}`."""
    if not lengths:
        return (), ()
    longest = max(lengths)
    width = next(
        nice * 10**power for power in range(10) for nice in _NICE if longest // (nice * 10**power) + 1 <= _MOST_BINS
    )
    counts = [0] * (longest // width + 1)
    for length, rows in lengths.items():
        counts[length // width] += rows
    return tuple(width * index for index in range(len(counts) + 1)), tuple(counts)
