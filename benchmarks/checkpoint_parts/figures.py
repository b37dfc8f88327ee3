"""Compute ratios, a table and a JSON object from the measurements of ranks. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """One of our values and the value of the baseline in the same round."""

    ours: float
    other: float

    @property
    def ratio(self) -> float:
        return self.ours / self.other


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    key: str
    """Key in the JSON object."""
    title: str
    unit: str
    pairs: tuple[Pair, ...]
    """One per round."""
    limit: float
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        """Median of the ratios of all rounds."""
        return statistics.median(pair.ratio for pair in self.pairs) if self.pairs else None

    @property
    def remark(self) -> str:
        """`MISSED` if the ratio exceeds the limit, `target` if it reaches the target."""
        if self.ratio is None:
            return ""
        if self.ratio > self.limit:
            return "MISSED"
        return "" if self.target is None or self.ratio > self.target else "target"

    def row(self) -> str:
        """Return the row of the table, at most 80 columns wide."""
        limit = f"{self.limit:g}"
        if not self.pairs:
            return f"{self.title:<30}{'not measured':>25}{'':>13}{limit:>6}"
        ours, other = (statistics.median(getattr(pair, side) for pair in self.pairs) for side in ("ours", "other"))
        ratios = [pair.ratio for pair in self.pairs]
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}" if len(ratios) > 1 else ""
        shown = f"{_shown(ours, self.unit):>9}{_shown(other, self.unit):>9}{self.ratio:>7.3f}"
        return f"{self.title:<30}{shown} {spread:>12}{limit:>6} {self.remark}".rstrip()


def _shown(value: float, unit: str) -> str:
    return f"{value / 1e6:.1f} MB" if unit == "bytes" else f"{value:.3f} s"


def header() -> str:
    """Return the header of the table."""
    return f"{'':<30}{'ours':>9}{'other':>9}{'ratio':>7} {'from-to':>12}{'limit':>6}"


def table(figures: Sequence[Figure]) -> str:
    """Return the table."""
    return "\n".join([header(), *(figure.row() for figure in figures)])


def training_figures(ranks: Sequence[dict[str, Any]], stored_bytes: float) -> list[Figure]:
    """Compute the figures from the `training.Measurements` of each rank. Times are those of rank 0.

    `stored_bytes` is the size of one of our checkpoints.
    """
    main = ranks[0]
    ours, baselines = main["saves"][-len(main["baselines"]) :], main["baselines"]
    stalls = [
        Pair(save["snapshot"] + save["progress"], other["saving"] + other["uploading"])
        for save, other in zip(ours, baselines, strict=True)
    ]
    written = [Pair(stored_bytes, sum(each)) for each in zip(*map(_baseline_bytes, ranks), strict=True)]
    rounds = list(zip(*(main["windows"][place::3] for place in range(3)), strict=True))
    restores = [Pair(*each) for each in zip(*(main["restores"][side][1:] for side in ("ours", "raw")), strict=True)]
    return [
        Figure("stallRatio", "stall per checkpoint", "s", tuple(stalls), 0.02, 0.005),
        Figure("stepSlowdown", "step during upload / idle", "s", _slowdowns(rounds), 1.08, 1.03),
        Figure("wallRatio", "time per step, saves / none", "s", _walls(rounds), 1.05, 1.035),
        Figure("restoreRatio", "restore from S3 / raw download", "s", tuple(restores), 1.2, 1.05),
        Figure("bytesRatio", "bytes per checkpoint", "bytes", tuple(written), 0.54, 0.35),
    ]


def _baseline_bytes(rank: dict[str, Any]) -> list[int]:
    return [baseline["bytes"] for baseline in rank["baselines"]]


def _slowdowns(rounds: Sequence[Sequence[dict[str, Any]]]) -> tuple[Pair, ...]:
    """Compare medians of the steps of each round. Rounds without a complete step during an upload are left out."""
    found = []
    for windows in rounds:
        idle, during_upload = (
            [each for window in windows for each in window[kind]] for kind in ("idle", "during_upload")
        )
        if during_upload:
            found.append(Pair(statistics.median(during_upload), statistics.median(idle)))
    return tuple(found)


def _walls(rounds: Sequence[Sequence[dict[str, Any]]]) -> tuple[Pair, ...]:
    """Compare the time per step in windows with a save and without."""
    return tuple(Pair(*(_seconds_a_step(windows, saves=saves) for saves in (True, False))) for windows in rounds)


def _seconds_a_step(windows: Sequence[dict[str, Any]], *, saves: bool) -> float:
    chosen = [window for window in windows if window["saves"] is saves]
    seconds: float = sum(window["seconds"] for window in chosen)
    return seconds / sum(window["steps"] for window in chosen)


def frozen_figure(stored: dict[str, int]) -> Figure:
    """Compute the figure from the result of `frozen.stored_bytes`."""
    pair = Pair(stored["half2"], stored["full1"])
    return Figure("frozenBytesRatio", "bytes, half the layers frozen", "bytes", (pair,), 0.55)


def host_figure(ranks: Sequence[dict[str, Any]]) -> Figure:
    """Compare restores from the node-local cache and from S3 on rank 0, without the first of each."""
    restores = ranks[0]["restores"]
    pairs = tuple(Pair(*each) for each in zip(restores["host"][1:], restores["ours"][1:], strict=True))
    return Figure("hostRestoreRatio", "restore from local cache / S3", "s", pairs, 0.25, 0.15)


def writer_stalls(main: dict[str, Any]) -> list[float]:
    """Return the stalls caused by DeepSpeed's writer in seconds: the save, and the additional time of the next step."""
    return [
        baseline["saving"] + max(0.0, window["during_upload"][0] - statistics.median(window["idle"]))
        for baseline, window in zip(main["baselines"], main["windows"], strict=True)
    ]


def summary(figures: Sequence[Figure], **extra: Any) -> dict[str, Any]:
    """Return the JSON object."""
    ratios = {figure.key: None if figure.ratio is None else round(figure.ratio, 4) for figure in figures}
    return ratios | extra
