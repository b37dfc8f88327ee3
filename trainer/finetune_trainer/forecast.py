"""Forecasts a run before it trains: runs its prepare stage, and reads how fast earlier runs of its output were.

The figures are those that the run uses: the prepare stage chooses ZeRO stage, batching and data type, and its dataset
is stored under the output prefix, where the run finds it.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from finetune_api.constants import Stage
from finetune_api.evaluation_needs import EvaluationNeeds, model_copies
from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import Prepared, PreparedConfig, TrainerConfig

from .data.info import read_dataset_info
from .data.prepare import prepare
from .errors import StorageProtocolError
from .evaluate.training_log import TrainingLog
from .logs import QUIET_ENVIRONMENT, quiet_libraries
from .methods import METHODS
from .model.cpu_estimate import LOWEST, MARGIN
from .model.estimate import STATE_BYTES
from .model.gpu_estimate import GPU_ERRORS
from .progress import ProgressReporter
from .run_record import RunRecord
from .runtime import RuntimeEnv
from .store import ObjectStore
from .tasks import TASKS
from .train.plan import TrainingPlan, training_plan

log = logging.getLogger(__name__)

_MAX_RUNS = 20
"""Newest runs of an output that are read."""
_MAX_BYTES = 64 << 20
"""Larger documents are not read."""
_SAME = 1.2
"""Quotient of a forecast and its limits if an earlier run had the same model, method, data type and processes: the
speed of a machine varies."""
_SIMILAR = 2.0
"""The same if the time is scaled from another model or number of processes."""


@dataclass(frozen=True)
class TimeForecast:
    """Duration of all optimizer steps, in seconds."""

    shortest: float
    longest: float
    source: str
    """The run whose speed was measured, and how it differs."""


@dataclass(frozen=True)
class MemoryForecast:
    """Peak memory of one training process in bytes; with GPUs, that of its GPU."""

    lowest: int
    highest: int
    source: str
    """Where the errors that the limits allow for are from."""


@dataclass(frozen=True)
class Forecast:
    """What a run will need."""

    prepared: Prepared
    plan: TrainingPlan
    tokens_per_epoch: int
    """Tokens of the training split, without padding."""
    checkpoint_bytes: int
    """Size of one checkpoint in object storage."""
    buffer_bytes: int
    """Host memory of one process for its share of a checkpoint; part of the estimate of a process without GPUs."""
    evaluation_bytes: int
    """Memory of the evaluate stage."""
    evaluation_gpus: int
    memory: MemoryForecast
    time: TimeForecast | None
    """None: no run of this output has been measured."""


def forecast_job(config: TrainerConfig, store: ObjectStore, *, scratch: Path, cache: Path) -> Forecast:
    """Prepare the run in this process, and forecast it. `config` is that of a training attempt.

    `scratch` is empty and deleted afterwards; `cache` keeps downloads. Raises what `prepare` raises, with the closest
    settings that fit if the training does not.
    """
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import transformers.utils.logging  # noqa: F401

    quiet_libraries()
    runtime = RuntimeEnv(rank=0, world_size=1, local_rank=0, local_world_size=1, scratch=scratch, cache=cache)
    prepared = prepare(config, store, runtime, ProgressReporter(None, stage=Stage.PREPARE))
    info = read_dataset_info(store, prepared.dataset_uri)
    plan = training_plan(PreparedConfig.of(config, prepared))
    task = METHODS[config.spec.method.name].training_task(TASKS[prepared.task])
    tokens = task.texts_per_row * sum(length * rows for length, rows in info.lengths["train"].items())
    needs = EvaluationNeeds(
        parameters=prepared.parameters,
        test_tokens=prepared.test_tokens,
        dtype=prepared.dtype,
        copies=model_copies(config.spec),
        regression_tokens=prepared.regression_tokens,
    )
    checkpoint = STATE_BYTES * prepared.trained_parameters
    return Forecast(
        prepared=prepared,
        plan=plan,
        tokens_per_epoch=tokens,
        checkpoint_bytes=checkpoint,
        buffer_bytes=checkpoint // config.world.size,
        evaluation_bytes=needs.memory_bytes,
        evaluation_gpus=needs.gpus(config.spec),
        memory=memory_forecast(prepared.memory_estimate_bytes, on_gpus=config.world.gpus),
        time=_time(config, prepared, plan.total_steps * tokens / plan.steps_per_epoch, store),
    )


def memory_forecast(estimate: int, *, on_gpus: bool) -> MemoryForecast:
    """Return the range of the peak. The estimate of the prepare stage includes the margin of a process on the CPU."""
    if on_gpus:
        too_high, too_low = GPU_ERRORS
        source = "estimated, with the errors of published measurements of other programs"
        return MemoryForecast(int(estimate / (1 + too_high)), int(estimate / (1 - too_low)), source)
    return MemoryForecast(int(LOWEST / MARGIN * estimate), estimate, "estimated, with the errors of measured trainings")


@dataclass(frozen=True)
class MeasuredRun:
    """The speed of an earlier run."""

    name: str
    model_digest: str
    method: str
    work_per_second: float
    """Tokens times parameters per second and process."""
    processes: int
    on_gpus: bool
    dtype: str


def _time(config: TrainerConfig, prepared: Prepared, tokens: float, store: ObjectStore) -> TimeForecast | None:
    """`tokens` is the number of tokens of the whole training."""
    spec, world = config.spec, config.world
    usable = [run for run in measured_runs(config.output_uri, store) if run.on_gpus == world.gpus]
    if not usable:
        return None
    wanted = (prepared.model_digest, spec.method.name, world.size, prepared.dtype)
    same = [run for run in usable if (run.model_digest, run.method, run.processes, run.dtype) == wanted]
    known = (same or usable)[:3]
    # With other sizes, work per process is assumed to take the same time.
    rate = median(run.work_per_second for run in known) * world.size
    seconds, factor = tokens * prepared.parameters / rate, _SAME if same else _SIMILAR
    names = ", ".join(run.name for run in known)
    source = (
        f"measured in {names}"
        if same
        else f"scaled from {names}, with another model, method, data type or number of processes"
    )
    return TimeForecast(seconds / factor, seconds * factor, source)


def measured_runs(output_uri: str, store: ObjectStore) -> list[MeasuredRun]:
    """Return the newest runs of an output whose speed is known, newest first. Unreadable documents are skipped."""
    prefix = f"{output_uri}/runs/"
    found = [
        (info.modified, match[1])
        for info in store.list(prefix)
        if (match := re.match(r"(r\d+-[^/]+)/training\.json$", info.uri.removeprefix(prefix)))
    ]
    names = [name for _, name in sorted(found, reverse=True)[:_MAX_RUNS]]
    runs = (_measured(name, RunLayout(prefix + name), store) for name in names)
    return [run for run in runs if run is not None]


def _measured(name: str, layout: RunLayout, store: ObjectStore) -> MeasuredRun | None:
    try:
        documents = [store.get_version(uri, most_bytes=_MAX_BYTES) for uri in (layout.record, layout.training_log)]
        if any(document is None for document in documents):
            return None
        record, training = (document.content for document in documents if document is not None)
        run, measured = RunRecord.model_validate_json(record), TrainingLog.model_validate_json(training).speed
    except (ValidationError, StorageProtocolError) as error:
        log.debug("%s is not used for the forecast: %s", layout.uri, error)
        return None
    if measured is None:
        return None
    return MeasuredRun(
        name=name,
        model_digest=run.prepared.model_digest,
        method=run.spec.method.name,
        work_per_second=measured.tokens_per_second * run.prepared.parameters / measured.processes,
        processes=measured.processes,
        on_gpus=measured.on_gpus,
        dtype=run.prepared.dtype,
    )
