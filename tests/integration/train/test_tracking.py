"""Runs that report to trackers: event files are read by TensorBoard, MLflow is a real server, and files of W&B are read
with its messages and by `wandb sync`."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import trackio_server
import wandb_server
from evaluation_runs import runtime_in
from finetune_api.trainer_config import PreparedConfig, TrainerConfig
from finetune_api.v1alpha1 import MLflow, Tracking, Trackio, WandB
from finetune_trainer.errors import StorageUnreachableError
from finetune_trainer.store import ObjectStore
from finetune_trainer.tracking import TRACKERS, wandb
from finetune_trainer.tracking.background import BackgroundSession, Pauses
from finetune_trainer.tracking.base import LogEntry, Outcome, RunResult, Session, TrackedRun
from finetune_trainer.tracking.mlflow import client_of
from finetune_trainer.tracking.reports import open_reports
from process_support import base_environment
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
    for attempt, step in ((1, 2), (2, 5)):
        harness.interrupt(harness.config("logged", attempt=attempt, **blocks), step, how="kill")
    config = harness.config("logged", attempt=3, **blocks)
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
    assert reported_result(config, harness) == []


def reported_result(config: TrainerConfig, harness: TrainingHarness) -> list[str]:
    """Returns the warnings."""
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
    reports.join()
    return warnings


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


def trackio_block(url: str, project: str) -> dict[str, Any]:
    return {"trackio": {"serverUrl": url, "project": project}}


def rows_of_trackio(url: str, project: str) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) of the only run of a project, in the order in which the server got them."""
    (run,) = trackio_server.read(url, "get_runs_for_project", project=project)
    logs = trackio_server.read(url, "get_logs", project=project, run=run["name"], run_id=run["id"])
    return [(row["step"], {name: value for name, value in row.items() if "/" in name}) for row in logs]


def test_all_attempts_are_one_run_of_trackio_with_one_value_per_step(
    harness: TrainingHarness, trackio_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", trackio_server.TOKEN)
    token = {"TRACKIO_WRITE_TOKEN": trackio_server.TOKEN}
    tracking = trackio_block(f"{trackio_url}/", "attempts")
    blocks = {"tracking": tracking, "checkpoint": {"everySteps": 2}, "kind": "bert"}
    killed = harness.run(harness.config("rows", **blocks), TEST_END="kill", TEST_END_STEP="2", **token)
    assert killed.exit_codes == [-9, -9], killed.output
    config = harness.config("rows", attempt=2, **blocks)
    done = harness.run(config, **token)
    assert done.exit_codes == [0, 0], done.output
    report_result(config, harness)
    report_result(config, harness)

    assert config.prepared is not None
    curves: Curves = {}
    for step, metrics in rows_of_trackio(trackio_url, "attempts"):
        for name, value in metrics.items():
            curves.setdefault(name, []).append((step, value))
    assert curves.pop("test/accuracy") == [(10, 0.75)]
    assert curves == curves_of_log(harness.training_log(config))
    (settings,) = trackio_server.read(trackio_url, "get_run_configs", project="attempts").values()
    assert settings["training.epochs"] == "2"
    assert settings["rows.train"] == str(config.prepared.counts.train)
    assert settings["finetune.model_uri"] == f"{config.run_uri}/model"


def open_trackio(url: str, tmp_path: Path) -> Session:
    block = Trackio.model_validate(trackio_block(url, "sessions")["trackio"])
    return TRACKERS["trackio"].open(block, run_of(1, "s3://b/x"), None, tmp_path)  # type: ignore[arg-type]


def test_trackio_needs_its_write_token(trackio_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACKIO_WRITE_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"TRACKIO_WRITE_TOKEN is not set; set it in spec\.workers\.env from a Secret"):
        open_trackio(trackio_url, tmp_path)
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", "another")
    session = open_trackio(trackio_url, tmp_path)
    with pytest.raises((OSError, RuntimeError)) as caught:
        session.log([entry(1, 1.0)])
    assert "another" not in str(caught.value)


def test_a_redirect_of_a_trackio_server_is_not_followed(
    trackio_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would send the token to another host."""
    monkeypatch.setenv("TRACKIO_WRITE_TOKEN", trackio_server.TOKEN)
    with redirecting_server(trackio_url) as url, pytest.raises(urllib.error.HTTPError, match="307"):
        open_trackio(url, tmp_path).log([entry(1, 1.0)])


@contextmanager
def redirecting_server(target: str) -> Iterator[str]:
    """Answers every request with a redirect that keeps its method and body."""

    class Redirect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(307)
            self.send_header("Location", f"{target}{self.path}")
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def plain_log(harness: TrainingHarness, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The log of a run without trackers, which imports no library of one."""
    folder = tmp_path_factory.mktemp("libraries")
    for name in ("mlflow", "wandb"):
        (folder / f"{name}.py").write_text(f"print('{name} is imported')")
    config = harness.config("plain", kind="bert")
    done = harness.run(config, PYTHONPATH=f"{folder}:{base_environment()['PYTHONPATH']}")
    assert done.exit_codes == [0, 0], done.output
    assert "is imported" not in done.output
    return harness.training_log(config)


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "hangs"])
@pytest.mark.parametrize("tracker", ["mlflow", "wandb", "trackio"])
def test_a_training_neither_waits_nor_fails_without_its_server(
    harness: TrainingHarness, silent_server: str, plain_log: list[dict[str, float]], tracker: str, answers: bool
) -> None:
    url = silent_server if answers else "http://127.0.0.1:9"
    blocks = {**mlflow_block(url), "wandb": {"project": "topics", "mode": "Online", "baseUrl": url}}
    blocks |= trackio_block(url, "topics")
    config = harness.config(f"silent-{tracker}-{answers}", kind="bert", tracking={tracker: blocks[tracker]})
    started = time.monotonic()
    done = harness.run(config, WANDB_API_KEY=wandb_server.API_KEY, TRACKIO_WRITE_TOKEN=trackio_server.TOKEN)
    assert done.exit_codes == [0, 0], done.output
    assert time.monotonic() - started < 60
    assert harness.training_log(config) == plain_log
    assert done.message.progress is not None
    if tracker != "wandb" and not answers:  # W&B tries for some seconds
        assert any(f"spec.tracking.{tracker} failed" in warning for warning in done.message.progress.warnings)


@pytest.mark.parametrize("answers", [False, True], ids=["refuses", "hangs"])
def test_an_unreachable_wandb_server_is_a_warning(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.API_KEY)
    monkeypatch.setattr(wandb, "_START_SECONDS", 1.0)
    url = silent_server if answers else "http://127.0.0.1:9"
    block = WandB.model_validate({"project": "topics", "mode": "Online", "baseUrl": url})
    opened: Any = partial(TRACKERS["wandb"].open, block, run_of(1, "s3://b/x"), None, tmp_path)
    reported = BackgroundSession("wandb", opened, [entry(1, 1.0)], pauses=Pauses(first=0.1))
    reported.end(Outcome.TRAINED)
    reported.join(30)
    failed, missing = reported.new_warnings()
    assert failed.startswith("spec.tracking.wandb failed: CommError: ")
    assert missing == "spec.tracking.wandb does not answer: not everything was reported"


def test_a_deleted_experiment_is_an_error_that_names_it(mlflow_url: str, tmp_path: Path) -> None:
    client = client_of(mlflow_url)
    client.delete_experiment(client.create_experiment("deleted"))
    block = MLflow(tracking_uri=mlflow_url, experiment="deleted")
    with pytest.raises(ValueError, match="the experiment deleted is deleted; restore it"):
        TRACKERS["mlflow"].open(block, run_of(1, "s3://b/x"), None, tmp_path)  # type: ignore[arg-type]


def records_of_wandb(path: Path) -> Iterator[Any]:
    """Yield the records of a file: messages in blocks of 32 KiB, each part with a checksum, its length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, message = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def items_of(record: Any, field: str) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in getattr(record, field)}


def rows_of_wandb(path: Path) -> list[dict[str, Any]]:
    return [items_of(record.history, "item") for record in records_of_wandb(path) if record.HasField("history")]


def curves_of_rows(rows: list[dict[str, Any]]) -> Curves:
    curves: Curves = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(("train/", "validation/")):
                curves.setdefault(name, []).append((row["_step"], value))
    return curves


def files_of_wandb(store: ObjectStore, run_uri: str, folder: Path) -> list[Path]:
    store.download_folder(f"{run_uri}/wandb", folder)
    return sorted(folder.glob("*/*.wandb"))


def test_a_wandb_file_has_all_steps_at_a_checkpoint_and_replaces_earlier_ones(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    """The first attempt is killed after its checkpoint of step 8, the second one fails."""
    uri = f"s3://{bucket}/runs/r0001-x"
    for attempt, last in ((1, 8), (2, 10)):
        run, scratch = run_of(attempt, uri), tmp_path / f"attempt-{attempt}"
        session = TRACKERS["wandb"].open(WandB(project="topics"), run, store, scratch)
        session.log([entry(step, float(attempt)) for step in range(1, last + 1)])
        if attempt == 1:
            session.saved()
        else:
            session.end(Outcome.FAILED)
        (path,) = files_of_wandb(store, uri, tmp_path / f"read-{attempt}")
        assert path.name == f"run-{run.key}.wandb"
        assert curves_of_rows(rows_of_wandb(path)) == {
            "train/loss": [(step, float(attempt)) for step in range(1, last + 1)]
        }
        wandb._stop_service()  # as the end of the process does
    (ended,) = (record.exit.exit_code for record in records_of_wandb(path) if record.HasField("exit"))
    assert ended == 1


OTHER_SETTINGS = {
    "WANDB_MODE": "online",
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_CONSOLE": "wrap",
    "WANDB_PROJECT": "other",
    "WANDB_RUN_GROUP": "other",
    "WANDB_RUN_ID": "other",
    "WANDB_TAGS": "other",
    "WANDB_X_DISABLE_STATS": "false",
}
"""Variables that would change the run or send it elsewhere."""


def test_files_of_a_killed_and_resumed_run_are_one_wandb_run(harness: TrainingHarness, tmp_path: Path) -> None:
    blocks = {"tracking": {"wandb": {"project": "topics"}}, "checkpoint": {"everySteps": 2}, "kind": "bert"}
    killed = harness.run(harness.config("offline", **blocks), TEST_END="kill", TEST_END_STEP="2", **OTHER_SETTINGS)
    assert killed.exit_codes == [-9, -9], killed.output
    config = harness.config("offline", attempt=2, **blocks)
    done = harness.run(config, **OTHER_SETTINGS)
    assert done.exit_codes == [0, 0], done.output
    assert done.message.progress is not None
    assert done.message.progress.warnings == ()

    expected = curves_of_log(harness.training_log(config))
    assert {"train/loss", "validation/loss", "validation/accuracy"} <= set(expected)
    (trained,) = files_of_wandb(harness.store, config.run_uri, tmp_path / "trained")
    assert curves_of_rows(rows_of_wandb(trained)) == expected
    records = list(records_of_wandb(trained))
    (run,) = (one.run for one in records if one.HasField("run"))
    assert (run.project, run.display_name) == ("topics", "offline-r0001")
    assert (run.git.commit, run.host, run.run_group, [*run.tags]) == ("", "", "", [])
    assert items_of(run.config, "update")["training.epochs"] == "2"
    kinds = {one.WhichOneof("record_type") for one in records}
    assert kinds == {"header", "run", "telemetry", "summary", "history", "exit"}, "no console, no system metrics"

    report_result(config, harness)
    (path,) = files_of_wandb(harness.store, config.run_uri, tmp_path / "evaluated")
    assert path.name == trained.name, "one W&B run"
    with wandb_server.running() as server:
        for file in (trained, path):  # a newer file replaces the rows
            synced(file.parent, server)
        (stored,) = server.runs.values()
        assert curves_of_rows(stored.rows) == expected
        assert stored.summary["test/accuracy"] == 0.75
        assert stored.config["finetune.model_uri"] == f"{config.run_uri}/model"
        assert stored.config["finetune.uri"] == config.run_uri


def synced(folder: Path, server: wandb_server.WandBServer) -> None:
    env = os.environ | {"WANDB_API_KEY": wandb_server.API_KEY, "WANDB_BASE_URL": server.url, "HOME": str(folder)}
    env = {name: value for name, value in env.items() if name != "WANDB_SERVICE"} | {"WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, "-m", "wandb", "sync", str(folder)]
    done = subprocess.run(command, check=False, env=env, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_attempt_continues_the_run_on_a_wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt resumes from step 5. The server has the steps until 7: the newest one may still change."""
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.API_KEY)
    with wandb_server.running() as server:
        block = WandB.model_validate({"project": "topics", "mode": "Online", "baseUrl": server.url})
        for attempt, first, outcome in ((1, 1, Outcome.STOPPED), (2, 6, Outcome.TRAINED), (3, 14, Outcome.EVALUATED)):
            run = run_of(attempt, "s3://bucket/it's/runs/r0001-x")
            session = TRACKERS["wandb"].open(block, run, None, tmp_path)  # type: ignore[arg-type]
            session.log([entry(step, float(attempt)) for step in range(1, first + 8) if step < 14])
            session.log([LogEntry(time.time(), {"step": 13, "epoch": 2.0, "eval_loss": 0.5})] if attempt == 2 else [])
            if outcome is Outcome.EVALUATED:
                session.result(RunResult(13, {"test/accuracy": 0.75}))
            session.end(outcome)
        ((name, stored),) = server.runs.items()
    assert name == run_of(1, "s3://bucket/it's/runs/r0001-x").key
    losses = [(row["_step"], row["train/loss"]) for row in stored.rows]
    assert losses == [(step, 1.0 if step < 8 else 2.0) for step in range(1, 14)]
    assert stored.rows[-1]["validation/loss"] == 0.5
    assert stored.summary["test/accuracy"] == 0.75
    assert stored.exit_codes == [1, 0, 0]
    assert server.other == [], "no telemetry"


def test_an_online_run_of_wandb_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    block = WandB.model_validate({"project": "topics", "mode": "Online", "baseUrl": "http://127.0.0.1:9"})
    with pytest.raises(ValueError, match=r"WANDB_API_KEY is not set; set it in spec\.workers\.env from a Secret"):
        TRACKERS["wandb"].open(block, run_of(1, "s3://b/x"), None, tmp_path)  # type: ignore[arg-type]


def test_every_tracker_of_the_api_is_registered() -> None:
    assert {str(info.alias) for info in Tracking.model_fields.values()} == set(TRACKERS)
