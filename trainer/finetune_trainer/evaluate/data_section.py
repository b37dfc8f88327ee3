"""The dataset as shown in report and model card. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..data.info import DatasetInfo, RuleInfo, WeightInfo

_MOST_BINS = 24
_NICE = (1, 2, 5)


@dataclass(frozen=True)
class DataSection:
    """Statistics of the dataset for display."""

    dropped: tuple[tuple[str, int], ...] = ()
    """Rule -> number of records that it dropped, most frequent first."""
    rules: tuple[RuleInfo, ...] = ()
    """What each optional step, for example a rule of `spec.data.cleaning`, did, with examples."""
    weights: tuple[WeightInfo, ...] = ()
    """All sources of the training split, if one of them has another weight than 1."""
    truncated: int = 0
    """Number of examples that were truncated to the maximum length, in all splits."""
    max_length: int = 0
    """Maximum length in tokens."""
    tokens: int = 0
    """Number of tokens of all examples before truncating and dropping, in all splits."""
    dropped_tokens: int = 0
    """Number of these tokens that were not used."""
    edges: tuple[int, ...] = ()
    """Bin edges of the length histogram of the training split, in tokens; one more than bins."""
    histogram: tuple[int, ...] = ()
    """Number of examples per bin, including its lower edge and excluding its upper edge."""
    remarks: tuple[str, ...] = ()

    @property
    def copies(self) -> int:
        """Number of changed copies among the training examples."""
        return sum(rule.added for rule in self.rules)

    @classmethod
    def of(cls, info: DatasetInfo) -> "DataSection":
        """Create it from dataset.json."""
        edges, histogram = length_histogram(info.lengths.get("train", {}))
        return cls(
            dropped=tuple(sorted(info.dropped.items(), key=lambda item: (-item[1], item[0]))),
            rules=info.rules,
            weights=info.weights,
            truncated=sum(info.truncated.values()),
            max_length=info.max_length,
            tokens=sum(info.tokens.values()),
            dropped_tokens=sum(info.dropped_tokens.values()),
            edges=edges,
            histogram=histogram,
            remarks=info.remarks,
        )


def length_histogram(lengths: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Edges and counts of at most 24 bins of equal, round width, from `{tokens: rows}`."""
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
