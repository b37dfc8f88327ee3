"""Runs that report to trackers: event files are read by TensorBoard, and MLflow is a real server."""

import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evaluation_runs import runtime_in
from finetune_api.trainer_config import PreparedConfig, TrainerConfig
from finetune_api.v1alpha1 import MLflow, Tracking
from finetune_trainer.errors import StorageUnreachableError
from finetune_trainer.store import ObjectStore
from finetune_trainer.tracking import TRACKERS
from finetune_trainer.tracking.base import LogEntry, Outcome, RunResult, Session, TrackedRun
from finetune_trainer.tracking.mlflow import client_of
from finetune_trainer.tracking.reports import open_reports
from training_harness import TrainingHarness

Curves = dict[str, list[tuple[int, float]]]


def curves_of_log(log: list[dict[str, Any]]) -> Curves:
    """Name for trackers -> (step, value), from training.json."""
    curves: Curves = {}
    for entry in log:
        for name, value in LogEntry(0.0, entry).metrics.items():
            curves.setdefault(name, []).append((int(entry["step"]), value))
    return curves


def curves_of_events(store: ObjectStore, run_uri: str, folder: Path) -> Curves:
    """What TensorBoard shows."""
    store.download_folder(f"{run_uri}/tensorboard", folder)
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def as_float32(curves: Curves) -> Curves:
    return {name: [(step, float(np.float32(value))) for step, value in points] for name, points in curves.items()}


def run_of(attempt: int, uri: str, *, generation: int = 0) -> TrackedRun:
    return TrackedRun(uri, "job-r0001", attempt, generation, {"training.epochs": "3"}, {"finetune.job": "a/job"})


def entry(step: int, loss: float) -> LogEntry:
    return LogEntry(time.time(), {"step": step, "epoch": step / 10, "loss": loss})


class UndeletingStore(ObjectStore):
    """A store whose deletions fail."""

    def delete_many(self, uris: Any) -> None:
        if uris:
            raise StorageUnreachableError("deletions fail")


def open_event_file(store: ObjectStore, uri: str, attempt: int, tmp_path: Path) -> Session:
    folder = tmp_path / f"attempt-{attempt}"
    return TRACKERS["tensorBoard"].open(None, run_of(attempt, uri), store, folder)


@pytest.mark.parametrize("deletes", [True, False])
def test_steps_that_are_trained_again_have_one_value(
    store: ObjectStore, bucket: str, tmp_path: Path, deletes: bool
) -> None:
    """An attempt uploads eight steps, and the next one resumes from its checkpoint of step 5. If the old file cannot be
    removed, TensorBoard ignores its steps."""
    uri = f"s3://{bucket}/runs/r0001-x"
    first = open_event_file(store, uri, 1, tmp_path)
    first.log([entry(step, 1.0) for step in range(1, 9)])
    first.saved()
    if not deletes:
        store.__class__ = UndeletingStore
    second = open_event_file(store, uri, 2, tmp_path)
    second.log([entry(step, 1.0) for step in range(1, 6)])
    second.log([entry(step, 2.0) for step in range(6, 11)])
    if deletes:
        second.end(Outcome.TRAINED)
    else:
        with pytest.raises(StorageUnreachableError):
            second.saved()
    files = [info.uri.rpartition("/")[2] for info in store.list(f"{uri}/tensorboard/")]
    assert len(files) == (1 if deletes else 2)
    found = curves_of_events(store, uri, tmp_path / "read")
    assert found == {"train/loss": [(step, 1.0 if step < 6 else 2.0) for step in range(1, 11)]}


def test_an_attempt_that_lost_the_run_removes_no_newer_file(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    uri = f"s3://{bucket}/runs/r0001-x"
    sessions = [open_event_file(store, uri, attempt, tmp_path) for attempt in (1, 2)]
    sessions[1].log([entry(1, 2.0)])
    sessions[1].end(Outcome.TRAINED)
    sessions[0].log([entry(1, 1.0), entry(2, 1.0)])
    sessions[0].end(Outcome.TRAINED)
    assert curves_of_events(store, uri, tmp_path / "read") == {"train/loss": [(1, 2.0)]}


def test_event_files_of_a_killed_and_resumed_run_are_its_log(harness: TrainingHarness, tmp_path: Path) -> None:
    tracking = {"tracking": {"tensorBoard": {}}, "checkpoint": {"everySteps": 2}, "kind": "bert"}
    killed = harness.run(harness.config("events", **tracking), TEST_END="kill", TEST_END_STEP="2")
    assert killed.exit_codes == [-9, -9], killed.output
    config = harness.config("events", attempt=2, **tracking)
    done = harness.run(config)
    assert done.exit_codes == [0, 0], done.output
    assert done.message.progress is not None
    assert done.message.progress.resumed_from_step
    assert done.message.progress.warnings == ()
    expected = as_float32(curves_of_log(harness.training_log(config)))
    assert {"train/loss", "train/learning_rate", "validation/loss", "validation/accuracy"} <= set(expected)
    assert curves_of_events(harness.store, config.run_uri, tmp_path) == expected


def mlflow_block(url: str, experiment: str = "tests") -> dict[str, Any]:
    return {"mlflow": {"trackingUri": url, "experiment": experiment}}


def runs_of(url: str, experiment: str) -> tuple[MlflowClient, list[Any]]:
    client = client_of(url)
    found = client.get_experiment_by_name(experiment)
    return client, [] if found is None else list(client.search_runs([found.experiment_id]))


def curves_of_mlflow(client: MlflowClient, run_id: str) -> Curves:
    names = client.get_run(run_id).data.metrics
    return {
        name: [(one.step, one.value) for one in client.get_metric_history(run_id, name)]
        for name in names
        if not name.startswith(("test/", "base/"))
    }


def test_all_attempts_are_one_mlflow_run_with_one_value_per_step(harness: TrainingHarness, mlflow_url: str) -> None:
    blocks = {"tracking": mlflow_block(mlflow_url, "attempts"), "checkpoint": {"everySteps": 2}, "kind": "bert"}
    killed = harness.run(harness.config("logged", **blocks), TEST_END="kill", TEST_END_STEP="2")
    assert killed.exit_codes == [-9, -9], killed.output
    config = harness.config("logged", attempt=2, **blocks)
    done = harness.run(config)
    assert done.exit_codes == [0, 0], done.output
    report_result(config, harness)

    assert config.prepared is not None
    client, (run,) = runs_of(mlflow_url, "attempts")
    assert curves_of_mlflow(client, run.info.run_id) == curves_of_log(harness.training_log(config))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "logged-r0001"
    assert run.data.params["training.epochs"] == "2"
    assert run.data.params["method.full"] == "{}"
    assert run.data.params["rows.train"] == str(config.prepared.counts.train)
    assert "workers.nodes" not in run.data.params, "fields that may change between attempts are no parameters"
    assert run.data.tags["finetune.uri"] == config.run_uri
    assert run.data.metrics["test/accuracy"] == 0.75
    assert run.data.tags["finetune.model_uri"] == f"{config.run_uri}/model"


def report_result(config: TrainerConfig, harness: TrainingHarness) -> None:
    """What the evaluate stage reports, which is tested with its stage."""
    assert config.prepared is not None
    prepared = PreparedConfig.of(config, config.prepared)
    warnings: list[str] = []
    log = harness.training_log(config)
    reports = open_reports(
        prepared, harness.store, runtime_in(harness.folder / "result"), log, warnings.append, for_results=True
    )
    result = RunResult(10, {"test/accuracy": 0.75}, {"finetune.model_uri": f"{config.run_uri}/model"})
    reports.end(Outcome.EVALUATED, result)
    reports.sessions[0].join(120)
    assert warnings == []


def test_steps_that_a_server_already_has_keep_their_value(mlflow_url: str, tmp_path: Path) -> None:
    tracker, block = TRACKERS["mlflow"], MLflow(tracking_uri=mlflow_url, experiment="repeated")
    uri = "s3://bucket/it's/runs/r0001-x"
    for attempt, first, value, outcome in ((1, 1, 1.0, Outcome.FAILED), (2, 6, 2.0, Outcome.STOPPED)):
        session = tracker.open(block, run_of(attempt, uri), None, tmp_path)  # type: ignore[arg-type]
        session.log([entry(step, 1.0) for step in range(1, first)])
        session.log([entry(step, value) for step in range(first, first + 8)])
        session.log([entry(first, value)])
        session.end(outcome)
    client, (run,) = runs_of(mlflow_url, "repeated")
    assert run.info.status == "KILLED"
    steps = [one.step for one in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(steps) == list(range(1, 14))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "hangs"])
def test_a_training_neither_waits_nor_fails_without_its_mlflow_server(
    harness: TrainingHarness, silent_server: str, answers: bool
) -> None:
    url = silent_server if answers else "http://127.0.0.1:9"
    plain = harness.config(f"plain-{answers}", kind="bert")
    assert harness.run(plain).exit_codes == [0, 0]
    config = harness.config(f"silent-{answers}", kind="bert", tracking=mlflow_block(url))
    started = time.monotonic()
    done = harness.run(config)
    assert done.exit_codes == [0, 0], done.output
    assert time.monotonic() - started < 60
    assert harness.training_log(config) == harness.training_log(plain)
    assert done.message.progress is not None
    if not answers:
        assert any("spec.tracking.mlflow failed" in warning for warning in done.message.progress.warnings)


def test_a_deleted_experiment_is_an_error_that_names_it(mlflow_url: str, tmp_path: Path) -> None:
    client = client_of(mlflow_url)
    client.delete_experiment(client.create_experiment("deleted"))
    block = MLflow(tracking_uri=mlflow_url, experiment="deleted")
    with pytest.raises(ValueError, match="the experiment deleted is deleted; restore it"):
        TRACKERS["mlflow"].open(block, run_of(1, "s3://b/x"), None, tmp_path)  # type: ignore[arg-type]


def test_every_tracker_of_the_api_is_registered() -> None:
    assert {str(info.alias) for info in Tracking.model_fields.values()} == set(TRACKERS)
