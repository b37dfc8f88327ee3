import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.constants import Stage
from finetune_api.progress import TerminationMessage, TrainResult
from finetune_trainer.checkpoint.upload.standby import take_uploader
from finetune_trainer.errors import BadConfigError, BadDataError, DivergedError, StoppedError, is_out_of_memory
from finetune_trainer.progress import PROGRESS_FILE, ProgressReporter
from finetune_trainer.rank_main import process_started, read_config, read_result, run_bound
from process_support import make_config

TRAINED = TrainResult(model_uri="s3://bucket/model", digest="d", final_step=4)


class OutOfMemoryError(RuntimeError):
    """torch's class name."""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FINETUNE_SCRATCH", str(tmp_path))
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handlers, level = logging.root.handlers[:], logging.root.level
    (tmp_path / "config.json").write_text(make_config(Stage.TRAIN, 1).model_dump_json())
    yield tmp_path
    while uploader := take_uploader():
        uploader.kill()
        uploader.wait()
        uploader.channel.close()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


def run(scratch: Path, error: BaseException | None) -> tuple[int, TerminationMessage]:
    def stage() -> TrainResult:
        if error is not None:
            raise error
        return TRAINED

    code = run_bound(scratch / "config.json", lambda *_: stage)
    result = read_result(scratch, 0)
    assert result is not None
    return code, result


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DivergedError("the loss is NaN at step 3"), 81, "the loss is NaN at step 3"),
        (StoppedError("stopped at step 3"), 75, "stopped at step 3"),
        (MemoryError("too much"), 80, "MemoryError: too much"),
        (OutOfMemoryError("CUDA out of memory"), 80, "OutOfMemoryError: CUDA out of memory"),
        (KeyError("weight"), 79, "KeyError: 'weight'"),
        (ValueError("a matrix"), 79, "ValueError: a matrix"),
        (TypeError("None"), 79, "TypeError: None"),
        (ImportError("no module"), 79, "ImportError: no module"),
        (AssertionError(), 79, "AssertionError: "),
        (RuntimeError("connection closed by peer"), 70, "RuntimeError: connection closed by peer"),
        (ConnectionResetError("gone"), 70, "ConnectionResetError: gone"),
        (io.UnsupportedOperation("both an OSError and a ValueError"), 70, "UnsupportedOperation: both an OSError"),
        (ValueError("half a pair: \ud83d"), 79, "ValueError: half a pair: \\ud83d"),
        (DivergedError("half a pair: \ud83d"), 81, "half a pair: \\ud83d"),
        (BadDataError("half of a pair: \ud83d"), 65, "half of a pair: \\ud83d"),
    ],
)
def test_an_error_becomes_an_exit_code_and_a_message(
    scratch: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int, text: str
) -> None:
    returned, result = run(scratch, error)
    assert (returned, result.exit_code, result.rank) == (code, code, 0)
    assert result.error.startswith(text)
    assert ("not retried" in result.advice) == (code == 79)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ("traceback" in lines[-1]) == (code in (70, 79))


def test_after_the_first_step_a_program_error_may_be_temporary(scratch: Path) -> None:
    def bind(_config: object, _runtime: object, report: ProgressReporter) -> Callable[[], TrainResult]:
        def stage() -> TrainResult:
            report.update(step=8, first_step_time="2026-01-01T00:00:00Z")
            raise KeyError("weight")

        return stage

    assert run_bound(scratch / "config.json", bind) == 70


@pytest.mark.parametrize(
    ("stage", "advice"),
    [
        (Stage.PREPARE, "raise spec.stages.prepare.resources.limits.memory, or prepare fewer or smaller files"),
        (
            Stage.TRAIN,
            "lower spec.training.microBatchSize or spec.data.maxLength, raise spec.deepspeed.zeroStage, or raise "
            "spec.workers.resources.limits.memory",
        ),
        (Stage.EVALUATE, "raise spec.stages.evaluate.resources.limits.memory"),
    ],
)
def test_the_advice_for_insufficient_memory_depends_on_the_stage(scratch: Path, stage: Stage, advice: str) -> None:
    (scratch / "config.json").write_text(make_config(stage, 1).model_dump_json())
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(scratch, MemoryError())[1].advice == advice
    finally:
        signal.signal(signal.SIGTERM, before)


def test_warnings_are_limited_in_number_and_length() -> None:
    report = ProgressReporter(None, stage=Stage.PREPARE)
    for number in range(40):
        report.warn(f"warning {number} {'x' * 5000}")
    assert [warning.split()[1] for warning in report.progress.warnings] == [str(number) for number in range(24, 40)]
    assert max(map(len, report.progress.warnings)) == 1024


def test_a_result_is_stored_for_the_supervisor(scratch: Path) -> None:
    code, result = run(scratch, None)
    assert (code, result.exit_code, result.rank) == (0, 0, None)
    assert result.trained == TRAINED
    assert result.progress is not None
    assert result.progress.phase_seconds.keys() == {"import"}
    assert json.loads((scratch / PROGRESS_FILE).read_text())["stage"] == "train"


def test_a_rank_that_is_not_the_main_one_writes_no_progress(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_bound(scratch / "config.json", lambda *_: lambda: TRAINED) == 0
    assert read_result(scratch, 1) is not None
    assert not (scratch / PROGRESS_FILE).exists()


def test_an_environment_without_a_rank_is_a_usage_error(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK")
    assert run_bound(scratch / "config.json", lambda *_: lambda: TRAINED) == 64


def test_an_invalid_configuration_is_reported_with_its_first_error(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(Stage.TRAIN, 1).model_dump(mode="json") | {"run": "one"}))
    with pytest.raises(BadConfigError, match=r"config\.json: 1 errors; first: run: Input should be a valid integer"):
        read_config(path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_out_of_memory_errors_of_the_cpu_allocator_are_recognized(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_start_time_is_that_of_the_supervisor_or_of_the_process() -> None:
    assert process_started({"FINETUNE_STARTED_TIME": "12.5"}) == 12.5
    before = time.time()
    code = "from finetune_trainer.rank_main import process_started; print(process_started({}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert before - 1.0 <= float(output) <= time.time()
