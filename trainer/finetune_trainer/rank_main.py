"""The main function of a rank: reads the configuration, runs one stage, writes a result file and returns the exit code.

Large libraries are imported late: only those of the stage that runs, and after logging is configured, so that a missing
library is logged.
"""

import importlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.clock import rfc3339
from finetune_api.constants import Env
from finetune_api.exit_codes import ExitCode, out_of_memory_advice
from finetune_api.files import replace_file
from finetune_api.progress import EvaluateResult, TerminationMessage, TrainResult
from finetune_api.stages import STAGES
from finetune_api.trainer_config import CONFIG_VERSION, Prepared, TrainerConfig

from .allocator import return_freed_memory
from .bitsandbytes_import import disable_bitsandbytes
from .errors import (
    PROGRAM_ERROR_ADVICE,
    BadConfigError,
    MemoryExhaustedError,
    StoppedError,
    TrainerError,
    UsageError,
    described,
    is_out_of_memory,
    is_program_error,
    printable,
)
from .logs import QUIET_ENVIRONMENT, configure_logging, quiet_libraries
from .progress import ProgressReporter
from .runtime import RuntimeEnv
from .stage_context import StageContext
from .stop import install_stop_flag

log = logging.getLogger("finetune")

Result = Prepared | TrainResult | EvaluateResult
Bind = Callable[[TrainerConfig, RuntimeEnv, ProgressReporter], Callable[[], Result | None]]


def result_path(scratch: Path, rank: int) -> Path:
    """Return the path of the file that a rank writes its TerminationMessage to, for the supervisor."""
    return scratch / f"result-{rank}.json"


def run_rank(config_path: Path) -> int:
    """Run the configured stage as the rank that the environment specifies, and return its exit code.

    Writes `result-<rank>.json` to the scratch folder, which must exist.
    """
    return run_bound(config_path, bind_stage)


def run_bound(config_path: Path, bind: Bind) -> int:
    """Like `run_rank`, for any stage function: `bind` imports it and binds its arguments."""
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_ENVIRONMENT.items()})
    return_freed_memory(os.environ)
    disable_bitsandbytes()
    try:
        runtime = RuntimeEnv.from_environ(os.environ)
    except UsageError as error:
        configure_logging(rank=-1)
        log.error("the environment of this rank is invalid: %s", error)
        return error.exit_code
    configure_logging(runtime.rank)
    return _Rank(runtime, bind).run(config_path)


def read_config(path: Path) -> TrainerConfig:
    """Read the configuration. Raises BadConfigError, with file and field, if this trainer does not support it.

    Unknown fields of a newer operator are ignored, except for those of the spec: the user has set them to a value other
    than the default, and the result would differ without them.
    """
    try:
        config = TrainerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadConfigError(f"{path}: {error.strerror}", advice="pass the TrainerConfig file with --config") from error
    except ValidationError as error:
        if unknown := [_spec_path(entry["loc"]) for entry in error.errors() if entry["type"] == "extra_forbidden"]:
            raise BadConfigError(
                f"{', '.join(unknown)}: unknown to this trainer, which is older than the operator",
                advice="use the trainer image of the operator's version, or remove the field from the job",
            ) from error
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadConfigError(
            f"{path}: {error.error_count()} errors; first: {where}: {first['msg']}",
            advice="use the same version for operator and trainer",
        ) from error
    if config.version > CONFIG_VERSION:
        raise BadConfigError(
            f"{path}: version must be at most {CONFIG_VERSION}, not {config.version}: the operator is newer",
            advice="use the trainer image of the operator's version",
        )
    return config


def _spec_path(location: tuple[int | str, ...]) -> str:
    """`("spec", "training", "new_field")` -> `spec.training.newField`."""
    return ".".join(to_camel(part) if isinstance(part, str) else str(part) for part in location)


@dataclass
class _Rank:
    """State of a rank that is needed to report the end of its stage, including a failure."""

    runtime: RuntimeEnv
    bind: Bind
    stage: str = ""
    report: ProgressReporter | None = None
    result: dict[str, Result] = field(default_factory=dict)

    def run(self, config_path: Path) -> int:
        """Run the stage. Every error is turned into an exit code and a message."""
        try:
            self._run_stage(read_config(config_path))
        except StoppedError as stopped:
            log.info("stopped on request: %s", stopped)
            return self._finish(stopped.exit_code, error=str(stopped))
        except TrainerError as error:
            log.error("%s", error, exc_info=error.__cause__)
            return self._finish(error.exit_code, error=str(error), advice=error.advice)
        except BaseException as error:
            if is_out_of_memory(error):
                log.error("out of memory: %s", error)
                exhausted = MemoryExhaustedError(described(error), advice=out_of_memory_advice(self.stage))
                return self._finish(exhausted.exit_code, error=str(exhausted), advice=exhausted.advice)
            if not isinstance(error, Exception):
                raise
            log.exception("internal error: %s", described(error))
            if is_program_error(error) and not self._has_trained:
                return self._finish(ExitCode.PROGRAM_ERROR, error=described(error), advice=PROGRAM_ERROR_ADVICE)
            return self._finish(ExitCode.INTERNAL_ERROR, error=described(error))
        return self._finish(ExitCode.DONE)

    @property
    def _has_trained(self) -> bool:
        """Whether a step has completed. Later errors may depend on the state of the training: a retry may succeed."""
        return self.report is not None and self.report.progress.first_step_time is not None

    def _run_stage(self, config: TrainerConfig) -> None:
        self.stage = config.stage
        scratch = self.runtime.scratch if self.runtime.is_main else None
        self.report = report = ProgressReporter(scratch, stage=config.stage, attempt=config.attempt)
        started = process_started(os.environ)
        report.update(started_time=rfc3339(datetime.fromtimestamp(started, UTC)), flush=True)
        row = STAGES[config.stage]
        if row.saves_state:
            _fork_uploader()
        else:
            self._exit_on_sigterm()
        run = self.bind(config, self.runtime, report)
        quiet_libraries()
        report.add_seconds("import", time.time() - started)
        report.update(flush=True)
        result = run()
        self.result = {row.result: result} if row.result and result is not None else {}

    def _exit_on_sigterm(self) -> None:
        """Exit at once on SIGTERM: prepare and evaluate have no state to save, and start again in the next attempt."""

        def on_term(_signum: int, _frame: FrameType | None) -> None:
            os._exit(self._finish(ExitCode.STOPPED, error=f"the {self.stage} stage was stopped on request"))

        signal.signal(signal.SIGTERM, on_term)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def _finish(self, code: ExitCode, *, error: str = "", advice: str = "") -> int:
        failed = code is not ExitCode.DONE
        message = TerminationMessage(
            stage=self.stage,
            exit_code=code,
            error=printable(error),
            advice=printable(advice),
            rank=self.runtime.rank if failed else None,
            progress=None if self.report is None else self.report.progress,
            **self.result,
        )
        if self.report is not None:
            self.report.update(flush=True)
        path = result_path(self.runtime.scratch, self.runtime.rank)
        replace_file(path, message.model_dump_json(exclude_defaults=True))
        return code


def _fork_uploader() -> None:
    """Fork the uploader of this rank, before the stage starts threads."""
    from .checkpoint.upload.standby import fork_uploader

    fork_uploader()


def bind_stage(config: TrainerConfig, runtime: RuntimeEnv, report: ProgressReporter) -> Callable[[], Result | None]:
    """Import the stage's modules and bind its arguments."""
    row = STAGES[config.stage]
    # Before the slow imports: SIGTERM during them stops the training at its first step instead of killing the process.
    stop = install_stop_flag() if row.saves_state else None
    module, _, function = row.entry.partition(":")
    run: Callable[[StageContext], Result | None] = getattr(importlib.import_module(module), function)
    from .store.client import ObjectStore

    context = StageContext(config, ObjectStore.connect(config.storage), runtime, report, stop)
    return lambda: run(context)


def process_started(environ: Mapping[str, str]) -> float:
    """Return when the supervisor started this stage, or else when this process started, in seconds since 1970."""
    if given := environ.get(Env.STARTED_TIME):
        return float(given)
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def read_result(scratch: Path, rank: int) -> TerminationMessage | None:
    """Read the result file of a rank; None if there is none. Raises ValueError if its content is invalid."""
    try:
        return TerminationMessage.model_validate(json.loads(result_path(scratch, rank).read_text()))
    except FileNotFoundError:
        return None
