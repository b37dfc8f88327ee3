"""The confusion matrix as a table of colored cells. Pure."""

from dataclasses import dataclass

from ..tasks.metrics import ClassificationMetrics, ClassMetrics

MOST_CLASSES = 30
"""More columns do not fit on a page."""


@dataclass(frozen=True)
class ConfusionCell:
    """One pair of target and prediction."""

    count: int
    share: float
    """As a share of the row's examples."""
    right: bool
    """Whether it is on the diagonal."""


@dataclass(frozen=True)
class ConfusionRow:
    """One target class."""

    number: int
    """Row number in the table, from 1."""
    label: str
    support: int
    cells: tuple[ConfusionCell, ...]


@dataclass(frozen=True)
class ConfusionTable:
    """Rows are targets, columns predictions, both in the order of `rows`."""

    rows: tuple[ConfusionRow, ...]
    left_out: int
    """Number of classes that are not shown."""


def confusion_table(metrics: ClassificationMetrics) -> ConfusionTable:
    """All classes in the order of their ids; if there are more than 30, those in the most mistakes."""
    chosen = sorted(classes_with_most_mistakes(metrics, MOST_CLASSES), key=lambda row: row.id)
    counts = {(cell.target, cell.prediction): cell.count for cell in metrics.confusion}
    rows = []
    for number, target in enumerate(chosen, start=1):
        cells = []
        for other in chosen:
            count = counts.get((target.id, other.id), 0)
            cells.append(ConfusionCell(count, count / max(1, target.support), other.id == target.id))
        rows.append(ConfusionRow(number=number, label=target.label, support=target.support, cells=tuple(cells)))
    return ConfusionTable(rows=tuple(rows), left_out=metrics.classes - len(chosen))


def classes_with_most_mistakes(metrics: ClassificationMetrics, most: int) -> list[ClassMetrics]:
    """The classes with the most mistakes, as target or as prediction."""
    return sorted(metrics.per_class, key=lambda row: (-row.mistakes, row.id))[:most]
