"""`finetune promote`, `rollback` and `promoted` as processes."""

import getpass
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from command_line import CommandLine
from finetune_api.run_layout import PromotionLayout
from finetune_api.trainer_config import StorageSettings
from finetune_trainer.store import ObjectStore
from finetune_trainer.tracking.mlflow import client_of
from promoted_models import StoredModel, promoted_files, stored_model


@pytest.fixture
def output(bucket: str) -> str:
    return f"s3://{bucket}/out"


@pytest.fixture
def finetune(storage_settings: StorageSettings, tmp_path: Path, commands: CommandLine):
    """Run a command; returns status, lines and errors. `fresh`: in a new interpreter."""

    def go(*arguments: str, fresh: bool = False) -> tuple[int, list[str], str]:
        run = commands.fresh if fresh else commands.run
        done = run(*arguments, "--endpoint", str(storage_settings.endpoint), cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout.splitlines(), done.stderr

    return go


def evaluated(store: ObjectStore, output: str, run: int, **fields) -> StoredModel:
    model = stored_model(store, output, run, shards=run)
    store.put(model.layout.evaluation, json.dumps(model.evaluation(**fields)).encode())
    return model


def record_of(store: ObjectStore, output: str) -> dict:
    return store.get_json(PromotionLayout.of(output).record)


def test_models_are_promoted_and_rolled_back(store: ObjectStore, output: str, finetune) -> None:
    first, second = evaluated(store, output, 1), evaluated(store, output, 2)
    status, lines, err = finetune("promote", first.layout.uri, "--reason", "the first one", fresh=True)
    assert (status, err) == (0, "")
    assert lines[0] == f"{output}/promoted.json: {first.uri}, the first promoted model"
    assert lines[1].startswith(f"{output}/promoted/: 3 files, ")
    assert promoted_files(store, output) == first.contents
    record = record_of(store, output)
    assert (record["person"], record["reason"]) == (getpass.getuser(), "the first one")
    assert (record["job"]["name"], record["run"], record["model"]["task"]) == ("topics", 1, "SequenceClassification")

    status, lines, _ = finetune("promote", second.layout.uri)
    assert (status, lines[0]) == (0, f"{output}/promoted.json: {second.uri} replaces {first.uri}")
    assert promoted_files(store, output) == second.contents
    status, lines, _ = finetune("promote", second.layout.uri)
    assert (status, lines[0]) == (0, f"{output}/promoted.json: {second.uri} is already promoted")
    assert record_of(store, output)["number"] == 2

    status, lines, _ = finetune("rollback", output, "--reason", "slow", fresh=True)
    assert (status, lines[0]) == (0, f"{output}/promoted.json: {first.uri} replaces {second.uri}")
    assert promoted_files(store, output) == first.contents
    status, lines, _ = finetune("promoted", f"{output}/", fresh=True)
    assert (status, lines[0], lines[1]) == (0, f"model: {first.uri}", f"digest: {first.digest}")
    assert "reason: slow" in lines
    assert lines[lines.index("rolled back:") + 2].endswith(second.uri)
    status, out, _ = finetune("promoted", first.layout.uri, "-o", "json")
    assert (status, json.loads("\n".join(out))) == (0, record_of(store, output))

    status, _, err = finetune("rollback", first.layout.uri)
    assert (status, "has no previous entry to roll back to" in err) == (1, True)
    assert promoted_files(store, output) == first.contents


def test_an_interrupted_promotion_is_completed_by_the_same_command(store: ObjectStore, output: str, finetune) -> None:
    model = evaluated(store, output, 2)
    finetune("promote", model.layout.uri)
    layout = PromotionLayout.of(output)
    store.delete_many([layout.marker, f"{layout.folder}/model-00001-of-00002.safetensors"])
    store.put(f"{layout.folder}/model.safetensors", b"of another model")
    status, lines, _ = finetune("promote", model.layout.uri)
    assert (status, "is already promoted" in lines[0]) == (0, True)
    assert promoted_files(store, output) == model.contents
    assert store.get_json(layout.marker)["model"]["digest"] == model.digest


def test_a_refused_model_is_promoted_only_with_force(store: ObjectStore, output: str, finetune) -> None:
    checks = [
        {"holds": False, "text": "Accuracy 0.7 must be at least 0.9"},
        {"holds": True, "text": "Loss 0.4 must be at most 1"},
    ]
    model = evaluated(store, output, 1, promotion={"outcome": "Refused", "checks": checks})
    status, lines, err = finetune("promote", model.layout.uri)
    assert (status, lines) == (1, [])
    assert f"the evaluation has refused {model.uri}:\n- Accuracy 0.7 must be at least 0.9\nadd --force" in err
    assert not list(store.list(f"{output}/promoted"))
    assert finetune("promote", model.layout.uri, "--force")[0] == 0
    assert promoted_files(store, output) == model.contents
    assert [check["holds"] for check in record_of(store, output)["checks"]] == [False, True]


def test_a_model_that_is_missing_or_was_changed_is_refused(store: ObjectStore, output: str, finetune) -> None:
    good, changed, missing = (evaluated(store, output, run) for run in (1, 2, 3))
    unevaluated = stored_model(store, output, 4)
    adapter = stored_model(store, output, 5)
    document = adapter.evaluation(model={"uri": f"{adapter.layout.uri}/adapter", "digest": "d"})
    store.put(adapter.layout.evaluation, json.dumps(document).encode())
    store.put(f"{changed.uri}/config.json", b"{}")
    store.delete_many([info.uri for info in store.list(missing.uri)])
    assert finetune("promote", good.layout.uri)[0] == 0
    for folder, expected, words in [
        (changed.layout.uri, 78, f"{changed.uri} is not the model that was evaluated: its digest must be"),
        (missing.layout.uri, 78, f"there is no model at {missing.uri}"),
        (unevaluated.layout.uri, 78, "has no evaluation.json"),
        (adapter.layout.uri, 78, "add Merged to spec.output.formats"),
        (f"{output}/elsewhere", 2, "must be the folder of a run"),
    ]:
        for force in ([], ["--force"]):
            status, lines, err = finetune("promote", folder, *force)
            assert (status, lines, words in err) == (expected, [], True), err
    assert promoted_files(store, output) == good.contents
    assert record_of(store, output)["number"] == 1


def test_a_rollback_to_a_model_that_was_deleted_is_refused(store: ObjectStore, output: str, finetune) -> None:
    first, second = evaluated(store, output, 1), evaluated(store, output, 2)
    for model in (first, second):
        assert finetune("promote", model.layout.uri)[0] == 0
    store.delete(f"{first.uri}/model.safetensors")
    status, _, err = finetune("rollback", output)
    assert (status, "is not the model that was evaluated" in err) == (78, True)
    assert promoted_files(store, output) == second.contents


def test_nothing_is_promoted_in_a_new_output(output: str, finetune) -> None:
    status, _, err = finetune("promoted", output)
    assert (status, f"no model is promoted in {output}" in err) == (1, True)


def aliased(url: str, model: str, alias: str = "champion") -> ModelVersion | None:
    """The version that the alias names on the MLflow server."""
    try:
        return client_of(url).get_model_version_by_alias(model, alias)
    except MlflowException:
        return None


def test_the_alias_follows_promotions_and_rollbacks(
    store: ObjectStore, output: str, finetune, mlflow_url: str, monkeypatch
) -> None:
    """The second model is promoted without a registry of its own; the alias follows nevertheless."""
    registry = {"tracking_uri": mlflow_url, "model": "our topics", "alias": "champion"}
    first = evaluated(store, output, 1, promotion={"outcome": "Promoted", "registry": registry})
    second = evaluated(store, output, 2)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{mlflow_url}/")
    for command, model in (
        (("promote", first.layout.uri), first),
        (("promote", second.layout.uri), second),
        (("rollback", output), first),
        (("promote", second.layout.uri), second),
        (("promote", second.layout.uri), second),
    ):
        status, _, err = finetune(*command)
        assert (status, err) == (0, "")
        found = aliased(mlflow_url, "our topics")
        assert found is not None
        assert (found.source, found.tags["finetune.digest"]) == (model.uri, model.digest)
        assert found.tags["finetune.run"] == str(model.run)
    assert found.version == "2", "a model is registered once"
    _, lines, _ = finetune("promoted", output)
    assert f"registered: our topics@champion on {mlflow_url}" in lines


@pytest.mark.parametrize("trusted", ["", "https://another.example"])
def test_credentials_are_not_sent_to_a_server_that_only_storage_names(
    store: ObjectStore, output: str, finetune, monkeypatch, trusted: str
) -> None:
    requests: list[str] = []
    with recording_server(requests) as url:
        registry = {"tracking_uri": url, "model": "topics", "alias": "champion"}
        model = evaluated(store, output, 1, promotion={"outcome": "Promoted", "registry": registry})
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", trusted)
        status, lines, err = finetune("promote", model.layout.uri)
        assert (status, requests) == (0, [])
        assert promoted_files(store, output) == model.contents
        assert "warning: the model was not registered as topics@champion: set MLFLOW_TRACKING_URI" in err

        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        status, lines, err = finetune("promote", model.layout.uri)
        assert (status, "is already promoted" in lines[0]) == (0, True)
        assert requests, "now the server is asked, and its answer is no MLflow"
        assert f"warning: the model was not registered as topics@champion on {url}: MlflowException: " in err


@contextmanager
def recording_server(requests: list[str]) -> Iterator[str]:
    """An HTTP server that refuses every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.send_error(418)

        def log_message(self, *_: object) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
