"""The checks, cheapest first. Each returns its figures, or raises FailedCheckError with what does not hold."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

from finetune_api.exit_codes import ExitCode

from . import cases, flops
from .cases import Case
from .results import Check, FailedCheckError, SkippedError, falls, largest_difference, percentile
from .runs import Attempt, Ready, Runs

MIN_LORA_MFU = 0.35
MIN_RATIO = 1.0
MAX_RESUME_DIFFERENCE = 1e-3
"""Largest relative difference of a loss after a resume, where a kernel has no deterministic version."""
RELOAD_TOLERANCE, RELOAD_TOLERANCE_16_BIT = 1e-3, 0.05
"""Accepted mean difference per row, relative to the mean loss, as in the evaluate stage."""
_WARM_UP = 3
"""Steps that are not measured."""


@dataclass(frozen=True)
class Device:
    """What the checks run on."""

    kind: str
    name: str
    bytes: int
    """Free memory of the GPU, measured by a process that has a CUDA context; 0 on the CPU, whose memory is not limited
    here."""
    peak_tflops: float | None

    @property
    def is_gpu(self) -> bool:
        """Whether it is a CUDA GPU."""
        return self.kind == "cuda"

    def fits(self, ready: Ready) -> bool:
        """Whether the estimate says that the case fits."""
        return not self.is_gpu or ready.estimate_bytes - ready.context_bytes <= self.bytes


class Checks:
    """The checks of one device."""

    def __init__(self, runs: Runs, device: Device) -> None:
        self._runs, self._device = runs, device

    def all(self) -> list[Check]:
        """Return all checks, the cheapest first."""
        short = [Check(case.name, 6.0, partial(self._train, case.name)) for case in self._short]
        return [
            *short,
            Check("resume", 15.0, self._resume),
            Check("snapshot", 15.0, self._snapshot),
            Check("memory-plan", 20.0, self._memory),
            Check("speed-lora", 40.0, lambda: self._speed("lora")),
            Check("speed-full", 40.0, lambda: self._speed("full")),
        ]

    @property
    def _short(self) -> list[Case]:
        return cases.short_trainings(gpu=self._device.is_gpu)

    @cached_property
    def _ready_short(self) -> dict[str, Ready]:
        return {ready.case.name: ready for ready in self._prepare(*self._short)}

    def _prepare(self, *wanted: Case) -> list[Ready]:
        return self._runs.prepare(wanted, gpu=self._device.is_gpu)

    # A training from start to export

    def _train(self, name: str) -> dict[str, Any]:
        ready = self._ready_short[name]
        case = ready.case
        message = self._runs.train(ready.config).finished()
        losses = self._runs.losses(ready.config)
        stage = message.progress.zero_stage if message.progress else None
        figures: dict[str, Any] = {"firstLoss": losses[0], "lastLoss": losses[-1], "steps": len(losses), "zero": stage}
        if not falls(losses):
            raise FailedCheckError("the losses are not finite or do not fall", figures | {"losses": losses})
        expected = 2 if case.zero == 1 else case.zero
        if stage != expected:
            raise FailedCheckError(f"trained with ZeRO stage {stage} instead of {expected}", figures)
        figures |= self._reloaded(ready)
        if not figures["reloadDifference"] <= figures["reloadTolerance"]:
            raise FailedCheckError("the reloaded model has other losses than the trained one", figures)
        return figures

    def _reloaded(self, ready: Ready) -> dict[str, Any]:
        folder = self._runs.folder / f"exported-{ready.case.name}"
        folder.mkdir()
        config = ready.config.model_dump(mode="json")
        found = self._runs.call("gpu_check.ranks:reload", config=config, folder=str(folder))
        trained = statistics.fmean(found["trained"])
        pairs = zip(found["trained"], found["reloaded"], strict=True)
        share = RELOAD_TOLERANCE if ready.case.dtype == "Float32" else RELOAD_TOLERANCE_16_BIT
        return {
            "trainedLoss": trained,
            "reloadDifference": statistics.fmean(abs(one - other) for one, other in pairs),
            "reloadTolerance": share * max(1.0, trained),
        }

    # Kill and resume

    def _resume(self) -> dict[str, Any]:
        case = cases.resumed(gpu=self._device.is_gpu)
        through, killed = self._prepare(replace(case, name="resume-through"), replace(case, save_every=1))
        whole = self._runs.train(through.config, is_deterministic=True).finished()
        first = self._runs.train(killed.config, is_deterministic=True, kill=case.steps // 2)
        if first.exit_code != -9:
            raise FailedCheckError(f"the rank was to be killed, but ended with {first.exit_code}: {first.log}")
        again = killed.config.model_copy(update={"attempt": 2})
        last = self._runs.train(again, is_deterministic=True).finished()
        step = last.progress.resumed_from_step if last.progress else None
        expected, found = self._runs.losses(through.config), self._runs.losses(again)
        difference = largest_difference(found, expected)
        is_same = bool(whole.trained and last.trained and whole.trained.digest == last.trained.digest)
        figures = {
            "resumedFromStep": step,
            "largestDifference": difference,
            "isBitwise": is_same and found == expected,
            "tolerance": MAX_RESUME_DIFFERENCE if self._device.is_gpu else 0.0,
        }
        if not step:
            raise FailedCheckError("the second attempt did not resume from a checkpoint", figures)
        if not (figures["isBitwise"] or difference <= figures["tolerance"]):
            raise FailedCheckError("the losses after the resume are not those without a kill", figures)
        return figures

    # Snapshot

    def _snapshot(self) -> dict[str, Any]:
        case = cases.saved(gpu=self._device.is_gpu)
        (ready,) = self._prepare(case)
        # The last step would be saved for the export.
        config = _with_steps(ready, 1_000_000)
        found = self._runs.train(config, draws_weights=True, saves=True, steps=case.steps).found()
        saves = found["saves"]
        if len(saves) < 3:
            raise FailedCheckError(f"{len(saves)} saves instead of 3 or more", {"saves": saves})
        later = [save["seconds"] for save in saves[1:]]
        copies, size = found["copies"], saves[-1]["bytes"]
        figures = {
            "stateBytes": size,
            "firstStallSeconds": saves[0]["seconds"],
            "stallSeconds": statistics.median(later),
            "pinnedBytes": saves[-1]["pinnedBytes"],
            "copySeconds": min(copies.values()),
            "copies": copies,
            "stallToCopy": statistics.median(later) / max(1e-9, min(copies.values())),
            "stepSeconds": _step_seconds(found["marks"]),
        }
        if self._device.is_gpu and figures["pinnedBytes"] < size:
            raise FailedCheckError("the snapshot is not in page-locked memory", figures)
        return figures

    # Plan against measured memory

    def _memory(self) -> dict[str, Any]:
        rows, wrong = [], []
        for ready in self._prepare(*self._memory_cases()):
            if self._runs.budget.left < 20:
                break
            row = self._measured_memory(ready)
            rows.append(row)
            wrong += [row["name"]] if row["fits"] and row["isOutOfMemory"] else []
        errors = [abs(row["error"]) for row in rows if "error" in row]
        if not errors:
            raise FailedCheckError("no configuration was measured", {"cases": rows})
        figures = {
            "configurations": len(errors),
            "medianError": statistics.median(errors),
            "p95Error": percentile(errors, 0.95),
            "outOfMemory": len(wrong),
            "cases": rows,
        }
        if wrong:
            raise FailedCheckError(f"estimated to fit, but out of memory: {', '.join(wrong)}", figures)
        return figures

    def _memory_cases(self) -> list[Case]:
        """The configurations; the micro-batch of the last one is the largest that is estimated to fit."""
        *others, last = cases.measured_memory(gpu=self._device.is_gpu)
        sizes = [last.micro // part for part in (1, 2, 4, 8, 16, 32, 64) if last.micro >= part]
        smaller = self._prepare(*(replace(last, micro=size) for size in sizes))
        fitting = [ready.case for ready in smaller if self._device.fits(ready)]
        return [*others, (fitting or [replace(last, micro=1)])[0]]

    def _measured_memory(self, ready: Ready) -> dict[str, Any]:
        planned = ready.allocated_bytes if self._device.is_gpu else ready.estimate_bytes
        row: dict[str, Any] = {"name": ready.case.name, "micro": ready.case.micro, "plannedBytes": planned}
        row |= {"fits": self._device.fits(ready), "isOutOfMemory": False}
        if not row["fits"]:
            return row
        attempt = self._runs.train(_with_steps(ready, 1_000_000), draws_weights=True, steps=ready.case.steps)
        if is_out_of_memory(attempt):
            return row | {"isOutOfMemory": True}
        measured = attempt.found()["peakBytes"]
        return row | {"measuredBytes": measured, "error": planned / measured - 1}

    # Speed

    def _speed(self, name: str) -> dict[str, Any]:
        ready = self._fitting(cases.measured_speed(gpu=self._device.is_gpu)[name])
        case = ready.case
        found = self._runs.train(_with_steps(ready, 1_000_000), draws_weights=True, steps=case.steps).found()
        per_step = case.micro * case.accumulation * case.length
        ours = per_step / _step_seconds([time for time, _ in found["marks"]])
        is_lora = "lora" in case.method
        sizes = flops.Sizes(ready.matrices, case.sizes["num_hidden_layers"], case.sizes["hidden_size"])
        needed = flops.token_flops(sizes, case.length, adapters=found["trained"] if is_lora else None)
        peak = self._device.peak_tflops
        figures: dict[str, Any] = {
            "tokensPerSecond": ours,
            "mfu": flops.mfu(ours, needed, peak) if peak else None,
            "layers": sizes.layers,
            "microBatch": case.micro,
            "length": case.length,
            "gradientCheckpointing": case.checkpointing,
            "parameters": ready.parameters,
            "flopsPerToken": needed,
            "peakTflops": peak,
            "peakBytes": found["peakBytes"],
            "bars": {"ratio": MIN_RATIO, "apply": self._device.is_gpu} | ({"mfu": MIN_LORA_MFU} if is_lora else {}),
        }
        plain = self._plain(ready, figures)
        theirs = per_step / _step_seconds(plain["marks"])
        figures |= {"plainTokensPerSecond": theirs, "ratio": ours / theirs, "plainPeakBytes": plain["peakBytes"]}
        if missed := self._missed(figures):
            raise FailedCheckError(missed, figures)
        return figures

    def _plain(self, ready: Ready, figures: dict[str, Any]) -> dict[str, Any]:
        scratch = self._runs.folder / f"plain-{ready.case.name}"
        try:
            found: dict[str, Any] = self._runs.call(
                "gpu_check.plain:train",
                case=ready.case.as_json(),
                folder=ready.config.spec.model.uri.removeprefix("file://"),
                scratch=str(scratch),
                gpu=self._device.is_gpu,
            )
        except FailedCheckError as error:
            raise FailedCheckError(f"the plain side failed: {error}", figures) from error
        return found

    def _missed(self, figures: dict[str, Any]) -> str:
        """Say which bars are missed; empty on the CPU."""
        if not self._device.is_gpu:
            return ""
        texts = []
        if figures["ratio"] < MIN_RATIO:
            texts.append(f"{figures['ratio']:.3f} times the plain side, must be at least {MIN_RATIO}")
        least = figures["bars"].get("mfu")
        if least and figures["mfu"] is not None and figures["mfu"] < least:
            texts.append(f"MFU {figures['mfu']:.3f}, must be at least {least}")
        return "; ".join(texts)

    def _fitting(self, case: Case) -> Ready:
        """Return the first of the case, smaller micro-batches, recomputed activations and fewer layers that fits."""
        for ready in self._prepare(*smaller(case)):
            if self._device.fits(ready):
                return ready
        raise SkippedError(f"the memory of {self._device.name} is too small")


def smaller(case: Case) -> list[Case]:
    """Return the case, then with less memory: first smaller micro-batches, then recomputation, then fewer layers."""
    layers, micros = case.sizes["num_hidden_layers"], [case.micro >> shift for shift in range(case.micro.bit_length())]
    return [
        replace(case, micro=micro, checkpointing=is_recomputed, sizes=case.sizes | {"num_hidden_layers": count})
        for count in [layers, *(count for count in (24, 16, 8, 4, 2) if count < layers)]
        for is_recomputed in (False, True)
        for micro in micros
    ]


def is_out_of_memory(attempt: Attempt) -> bool:
    """Whether a rank ran out of memory, of the GPU or of the container."""
    message = attempt.message
    return message is not None and message.exit_code == ExitCode.OUT_OF_MEMORY


def _with_steps(ready: Ready, steps: int) -> Any:
    training = ready.config.spec.training.model_copy(update={"max_steps": steps})
    return ready.config.model_copy(update={"spec": ready.config.spec.model_copy(update={"training": training})})


def _step_seconds(marks: Sequence[Any]) -> float:
    """Return the median time of a step after the warm-up."""
    times = [mark[0] if isinstance(mark, list) else mark for mark in marks]
    return statistics.median(after - before for before, after in pairwise(times[_WARM_UP - 1 :]))
