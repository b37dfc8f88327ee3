"""From what ranks have seen to ratios, a table and one JSON object. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """A figure of ours beside another one of the same round."""

    ours: float
    other: float

    @property
    def ratio(self) -> float:
        return self.ours / self.other


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    key: str
    """Of the JSON object."""
    title: str
    unit: str
    pairs: tuple[Pair, ...]
    """One a round."""
    must: float
    reach: float | None = None

    @property
    def ratio(self) -> float | None:
        """Median of the rounds' ratios."""
        return statistics.median(pair.ratio for pair in self.pairs) if self.pairs else None

    @property
    def verdict(self) -> str:
        """`MISSED` what it must, or `reach`: what it should reach for."""
        if self.ratio is None:
            return ""
        if self.ratio > self.must:
            return "MISSED"
        return "" if self.reach is None or self.ratio > self.reach else "reach"

    def row(self) -> str:
        """At most 80 columns."""
        must = f"{self.must:g}"
        if not self.pairs:
            return f"{self.title:<30}{'not measured':>25}{'':>13}{must:>5}"
        ours, other = (statistics.median(getattr(pair, side) for pair in self.pairs) for side in ("ours", "other"))
        ratios = [pair.ratio for pair in self.pairs]
        spread = f"{min(ratios):.3f}-{max(ratios):.3f}" if len(ratios) > 1 else ""
        shown = f"{_shown(ours, self.unit):>9}{_shown(other, self.unit):>9}{self.ratio:>7.3f}"
        return f"{self.title:<30}{shown} {spread:>12}{must:>5} {self.verdict}".rstrip()


def _shown(value: float, unit: str) -> str:
    return f"{value / 1e6:.1f} MB" if unit == "bytes" else f"{value:.3f} s"


def header() -> str:
    """Of the table."""
    return f"{'':<30}{'ours':>9}{'other':>9}{'ratio':>7} {'from-to':>12}{'must':>5}"


def table(figures: Sequence[Figure]) -> str:
    """All rows."""
    return "\n".join([header(), *(figure.row() for figure in figures)])


def training_figures(ranks: Sequence[dict[str, Any]], stored_bytes: float) -> list[Figure]:
    """Of a rank's `training.Watch` each. `stored_bytes`: of one of our checkpoints. Times are rank 0's."""
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
        Figure("stepSlowdown", "step beside an upload / quiet", "s", _slowdowns(rounds), 1.08, 1.03),
        Figure("wallRatio", "wall time a step, saves / none", "s", _walls(rounds), 1.05, 1.035),
        Figure("restoreRatio", "restore from S3 / raw download", "s", tuple(restores), 1.2, 1.05),
        Figure("bytesRatio", "bytes per checkpoint", "bytes", tuple(written), 0.54, 0.35),
    ]


def _baseline_bytes(rank: dict[str, Any]) -> list[int]:
    return [baseline["bytes"] for baseline in rank["baselines"]]


def _slowdowns(rounds: Sequence[Sequence[dict[str, Any]]]) -> tuple[Pair, ...]:
    """Medians of the steps of all windows of a round; one without a whole step beside an upload has none."""
    found = []
    for windows in rounds:
        quiet, beside = ([each for window in windows for each in window[kind]] for kind in ("quiet", "beside"))
        if beside:
            found.append(Pair(statistics.median(beside), statistics.median(quiet)))
    return tuple(found)


def _walls(rounds: Sequence[Sequence[dict[str, Any]]]) -> tuple[Pair, ...]:
    """Of a step, over the windows with a save and over those without."""
    return tuple(Pair(*(_seconds_a_step(windows, saves=saves) for saves in (True, False))) for windows in rounds)


def _seconds_a_step(windows: Sequence[dict[str, Any]], *, saves: bool) -> float:
    chosen = [window for window in windows if window["saves"] is saves]
    seconds: float = sum(window["seconds"] for window in chosen)
    return seconds / sum(window["steps"] for window in chosen)


def frozen_figure(stored: dict[str, int]) -> Figure:
    """Of `frozen.stored_bytes`."""
    pair = Pair(stored["half2"], stored["full1"])
    return Figure("frozenBytesRatio", "bytes, half the layers frozen", "bytes", (pair,), 0.55)


def host_figure(ranks: Sequence[dict[str, Any]]) -> Figure:
    """Restores from the node-local cache and from S3, as seen by rank 0; without the first of each."""
    restores = ranks[0]["restores"]
    pairs = tuple(Pair(*each) for each in zip(restores["host"][1:], restores["ours"][1:], strict=True))
    return Figure("hostRestoreRatio", "restore from node-local cache / S3", "s", pairs, 0.25, 0.15)


def writer_stalls(main: dict[str, Any]) -> list[float]:
    """Seconds that DeepSpeed's writer held the training up: the save, and what the next step took longer for it."""
    return [
        baseline["saving"] + max(0.0, window["beside"][0] - statistics.median(window["quiet"]))
        for baseline, window in zip(main["baselines"], main["windows"], strict=True)
    ]


def summary(figures: Sequence[Figure], **more: Any) -> dict[str, Any]:
    """The JSON object."""
    ratios = {figure.key: None if figure.ratio is None else round(figure.ratio, 4) for figure in figures}
    return ratios | more
