"""The confusion matrix as a table of coloured cells. Pure."""

from dataclasses import dataclass

from .metrics import ClassificationMetrics

MOST_CLASSES = 30
"""More columns fit no page."""


@dataclass(frozen=True)
class Cell:
    """One pair of target and prediction."""

    count: int
    share: float
    """Of the row's examples."""
    right: bool
    """On the diagonal."""


@dataclass(frozen=True)
class HeatRow:
    """One target class."""

    number: int
    """Its number in the table, from 1."""
    label: str
    support: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class HeatTable:
    """Rows are targets, columns predictions, both in the order of `rows`."""

    rows: tuple[HeatRow, ...]
    left_out: int
    """Classes that are not shown."""


def heat_table(metrics: ClassificationMetrics) -> HeatTable:
    """All classes in the order of their ids; of more than 30 those with the most mistakes, made or suffered."""
    matrix = metrics.confusion
    size = len(matrix)
    mistakes = [
        sum(matrix[index]) + sum(row[index] for row in matrix) - 2 * matrix[index][index] for index in range(size)
    ]
    chosen = sorted(sorted(range(size), key=lambda index: (-mistakes[index], index))[:MOST_CLASSES])
    rows = []
    for number, index in enumerate(chosen, start=1):
        support = sum(matrix[index])
        rows.append(
            HeatRow(
                number=number,
                label=metrics.per_class[index].label,
                support=support,
                cells=tuple(
                    Cell(matrix[index][other], matrix[index][other] / max(1, support), other == index)
                    for other in chosen
                ),
            )
        )
    return HeatTable(rows=tuple(rows), left_out=size - len(chosen))
