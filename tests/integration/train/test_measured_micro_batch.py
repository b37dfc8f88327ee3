"""A training without `microBatchSize` near the memory limit measures which one fits, once per run."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.micro_batch import MeasuredMicroBatch, settings_digest
from finetune_trainer.run_record import read_micro_batch
from finetune_trainer.supervisor.forkclient import ForkClient, ForkServerProcess
from process_support import base_environment, until
from training_harness import TrainingHarness

MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 1088 << 20
SAVES = {"checkpoint": {"everySteps": 1}}


def with_limit(harness: TrainingHarness, name: str, **blocks: Any) -> TrainerConfig:
    """16 rows a step and no `microBatchSize`. The operator has planned micro-batches of 2."""
    workers = {"nodes": 2, "resources": {"limits": {"memory": "1Gi"}}}
    return harness.config(name, **{"kind": "bert", "batch": 16, "workers": workers} | blocks)


def record_of(harness: TrainingHarness, config: TrainerConfig) -> MeasuredMicroBatch | None:
    return read_micro_batch(harness.store, config.layout.micro_batch(settings_digest(config.spec)))


@pytest.mark.parametrize(("zero", "kind"), [(2, "bert"), (3, "llama")])
def test_a_resumed_run_does_not_measure_again_and_is_bitwise_equal_to_one_with_the_size_written_out(
    harness: TrainingHarness, zero: int, kind: str
) -> None:
    name = f"measured-{zero}"
    first = with_limit(harness, name, kind=kind, zero=zero, **SAVES)
    harness.interrupt(first, 2, how="kill")
    found = record_of(harness, first)
    assert found is not None
    assert found.micro_batch_size == 8, found
    assert [step.micro_batch_size for step in found.steps] == [1, 2, 4, 8]

    config = with_limit(harness, name, kind=kind, zero=zero, attempt=2, **SAVES)
    resumed = harness.finish(config)
    progress = resumed.message.progress
    assert progress is not None
    assert progress.resumed_from_step
    assert "micro-batch test" not in progress.phase_seconds
    assert (progress.measured_micro_batch, progress.gradient_accumulation) == (8, 1)

    written = harness.config(f"{name}-written", kind=kind, zero=zero, micro=8, batch=16)
    harness.check_same_result(config, resumed, written, harness.finish(written))


@pytest.mark.parametrize(
    ("probe", "size", "warning"),
    [
        ("probe_that_is_killed", 2, ""),
        ("probe_that_grows", 1, ""),
        ("probe_that_fails", None, "LookupError: no such layer; set spec.training.microBatchSize to choose it"),
    ],
)
def test_the_end_of_the_measuring_process_is_an_answer_for_all_workers(
    harness: TrainingHarness, probe: str, size: int | None, warning: str
) -> None:
    config = with_limit(harness, probe.replace("_", "-"), training={"epochs": None, "maxSteps": 1})
    ended = harness.finish(config, target="train_ranks:train_rank_with_probe", TEST_PROBE=f"train_ranks:{probe}")
    found, progress = record_of(harness, config), ended.message.progress
    assert found is not None
    assert progress is not None
    assert found.micro_batch_size == progress.measured_micro_batch == size
    assert any(text.endswith(warning) for text in progress.warnings) == bool(warning), progress.warnings


def test_a_measurement_that_ended_its_attempt_is_not_repeated(harness: TrainingHarness) -> None:
    """The kernel may have killed all processes of the worker."""
    config = with_limit(harness, "not-repeated", attempt=2, training={"epochs": None, "maxSteps": 1})
    harness.store.put(config.layout.micro_batch_attempt(settings_digest(config.spec)), b"1")
    progress = harness.finish(config).message.progress
    assert progress is not None
    assert progress.measured_micro_batch is None
    assert "micro-batch test" not in progress.phase_seconds
    assert any("the measurement of attempt 1 did not end" in text for text in progress.warnings)


@pytest.fixture
def limited(harness: TrainingHarness, tmp_path: Path) -> Iterator[TrainingHarness]:
    """The harness with ranks whose memory the kernel limits, as in a container."""
    group = MEMORY / f"finetune-probe-{os.getpid()}"
    own = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.split(":")[1] == "memory"]
    if not own:
        pytest.skip("needs control groups of version 1")
    before = MEMORY / own[0].split(":", 2)[2].lstrip("/")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        pytest.skip(f"needs its own control group: {error}")
    try:
        server = ForkServerProcess.start(tmp_path / "fork.sock", env=base_environment())  # in the group, as this test
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
    yield replace(harness, server=server, started=1000)  # with folders of its own
    server.stop()
    until(lambda: not (group / "cgroup.procs").read_text().split(), within=10, what="the control group is empty")
    group.rmdir()


def test_the_measured_size_is_the_largest_that_fits_a_control_group_within_one_power_of_two(
    harness: TrainingHarness, limited: TrainingHarness
) -> None:
    """It trains to the end. Four times the size is killed by the kernel."""
    folder = harness.models / "wide"
    folder.mkdir()
    with (harness.folder / "wide.log").open("wb") as output:
        client = ForkClient(harness.server.path)
        made = client.start_rank(base_environment(), folder, output.fileno(), target="train_ranks:make_wide_model")
    assert made.wait(120) == 0, (harness.folder / "wide.log").read_text()
    text = "cat horse milk bread " * 20
    rows = [{"text": text, "label": ("animal", "food")[index % 2]} for index in range(40)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    harness.store.put(f"s3://{harness.bucket}/wide.jsonl", content)
    data = {"maxLength": 64}
    harness.prepare("wide", data=data)

    def run(name: str, **training: Any) -> Any:
        training |= {"epochs": None, "maxSteps": 1}
        config = limited.config(name, kind="wide", world=1, batch=16, data=data, training=training, micro=16)
        return config, limited.run(config)

    config, measured = run("wide-measured")
    found = record_of(harness, config)
    assert found is not None
    assert measured.exit_codes == [0], measured.output
    assert found.micro_batch_size in (2, 4), found
    _, larger = run("wide-larger", microBatchSize=16)
    assert larger.exit_codes == [-9], (found, larger.output)
