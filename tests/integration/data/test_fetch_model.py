"""The base model from the hub's protocol, from object storage and from a folder, with real servers."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tiny_models
from fake_hub import TOKEN, FakeHub, files_in
from finetune_api.run_layout import base_model_folder
from finetune_api.trainer_config import TrainerConfig
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.errors import AccessDeniedError, BadConfigError, ModelUnusableError, StorageUnreachableError
from finetune_trainer.model import fetch
from finetune_trainer.model.fetch import fetch_model, prepared_model, store_copy
from finetune_trainer.model.portable import copy_tokenizer
from finetune_trainer.model.tokenizer import load_tokenizer, tokenizer_digest
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore
from prepare_fixture import PrepareFixture
from rows import chats, jsonl
from train_configs import train_config


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), tiny_models.CHATML)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that must not be fetched")
    (folder / "README.md").write_text("not needed either")
    return folder


@pytest.fixture(scope="module")
def shared_bucket(store_server: EmbeddedStore) -> str:
    """Creating a bucket takes longer than most of these tests."""
    store_server.create_bucket("fetch-model")
    return "fetch-model"


@pytest.fixture
def bucket(shared_bucket: str) -> str:
    """Bucket and folder of the test, for addresses with `s3://`."""
    return f"{shared_bucket}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def hub(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub().running() as server:
        server.repository("tiny/llama").commit(files_in(model_folder), "v1")
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_a_hub_model_is_fetched_once_without_unneeded_files(hub, store, tmp_path, model_folder):
    first = fetch_model("hf://tiny/llama", store, tmp_path)
    names = {path.name for path in first.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "README.md"}
    assert (first.path / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()
    assert load_tokenizer(first.path).chat_template == tiny_models.CHATML

    assert first.revision == hub.repository("tiny/llama").revisions["main"]
    again = fetch_model("hf://tiny/llama", store, tmp_path)
    assert (again.digest, again.path) == (first.digest, first.path)
    assert hub.fetched("model.safetensors") == 1


def test_a_named_revision_is_requested(hub, store, tmp_path):
    fetch_model("hf://tiny/llama@v1", store, tmp_path)
    assert hub.seen["GET /api/models/tiny/llama/revision/v1"]


@pytest.mark.parametrize("token", ["hf_wrong", ""])
def test_a_wrong_or_missing_token_is_access_denied(hub, store, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessDeniedError, match=r"hf://tiny/llama: http://127.* denies access \(401\)") as caught:
        fetch_model("hf://tiny/llama", store, tmp_path)
    assert "HF_TOKEN" in caught.value.advice


@pytest.mark.parametrize("uri", ["hf://tiny/other", "hf://tiny/llama@v9"])
def test_a_missing_model_or_revision_is_unusable(hub, store, tmp_path, uri):
    with pytest.raises(ModelUnusableError, match=r"has no such model or revision \(404\)"):
        fetch_model(uri, store, tmp_path)


def test_an_unreachable_hub_is_reported(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageUnreachableError, match=r"http://127\.0\.0\.1:9 did not respond"):
        fetch_model("hf://tiny/llama", store, tmp_path)


def test_a_model_without_an_organization_is_fetched(hub, store, tmp_path, model_folder):
    hub.repository("gpt2").commit(files_in(model_folder))
    fetched = fetch_model("hf://gpt2", store, tmp_path)
    assert (fetched.path / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()


def test_content_that_does_not_match_the_hubs_digest_is_rejected(hub, store, tmp_path):
    hub.changed_on_the_way.add("model.safetensors")
    with pytest.raises(
        StorageUnreachableError, match=r"the content of model\.safetensors from .* does not match its digest"
    ):
        fetch_model("hf://tiny/llama", store, tmp_path)


def test_a_model_in_storage_has_the_digest_of_the_folder_it_came_from(store, bucket, tmp_path, model_folder):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    from_storage = fetch_model(uri, store, tmp_path)
    assert from_storage.digest == fetch_model(f"file://{model_folder}", store, tmp_path).digest
    assert not (from_storage.path / "pytorch_model.bin").exists()
    assert fetch_model(uri + "/", store, tmp_path).path == from_storage.path


def test_a_changed_model_in_storage_is_fetched_again(store, bucket, tmp_path, model_folder):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    before = fetch_model(uri, store, tmp_path)
    store.put(f"{uri}/config.json", b'{"model_type": "bert"}')
    after = fetch_model(uri, store, tmp_path)
    assert after.digest != before.digest
    assert json.loads((after.path / "config.json").read_text()) == {"model_type": "bert"}


def test_processes_of_a_node_share_one_download(store, bucket, tmp_path, model_folder):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch_model(uri, store, tmp_path), range(4)))
    assert len(set(folders)) == 1


@pytest.mark.parametrize("uri", ["s3://{bucket}/nothing", "file:///no/such/folder"])
def test_an_address_without_a_model_is_unusable(store, bucket, tmp_path, uri):
    with pytest.raises(ModelUnusableError):
        fetch_model(uri.format(bucket=bucket), store, tmp_path)


# Files of a model


def test_only_files_that_loading_reads_are_fetched(store, bucket, tmp_path, model_folder):
    """Many model repositories also have training checkpoints, ONNX exports and weights of other frameworks."""
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    alone = fetch_model(uri, store, tmp_path / "alone")
    for name in (
        "checkpoint-500/model.safetensors",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "onnx/x.safetensors",
        "original/tokenizer.model",
        "deep/config.json",
    ):
        store.put(f"{uri}/{name}", b"not the model")
    fetched = fetch_model(uri, store, tmp_path / "with_other_files")
    assert {path.name for path in fetched.path.iterdir()} == {path.name for path in alone.path.iterdir()}
    assert fetched.digest == alone.digest


def test_all_chat_templates_of_a_model_are_fetched_digested_and_exported(store, bucket, tmp_path, model_folder):
    uri, base = f"s3://{bucket}/models/templates", tmp_path / "base"
    shutil.copytree(model_folder, base)
    copy_tokenizer(model_folder, base)  # an export changes names that version 4 of transformers lacks
    tool_use = base / "additional_chat_templates" / "tool_use.jinja"
    tool_use.parent.mkdir()
    tool_use.write_text("{{ messages[0].content }} with tools")
    store.upload_folder(base, uri)
    fetched = fetch_model(uri, store, tmp_path / "fetched")
    assert fetched.digest == fetch_model(f"file://{base}", store, tmp_path / "local").digest
    exported = tmp_path / "exported"
    exported.mkdir()
    copy_tokenizer(fetched.path, exported)
    for folder in (fetched.path, exported):
        assert load_tokenizer(folder).chat_template["tool_use"] == tool_use.read_text()
    known = tokenizer_digest(fetched.path)
    assert known == tokenizer_digest(base) == tokenizer_digest(exported)
    tool_use.write_text("changed")
    assert tokenizer_digest(base) != known
    assert fetch_model(f"file://{base}", store, tmp_path / "again").digest != fetched.digest


def test_a_sharded_model_consists_of_the_files_in_its_index(store, bucket, tmp_path, model_folder):
    uri = f"s3://{bucket}/models/sharded"
    for name, content in files_in(model_folder).items():
        if name != "model.safetensors":
            store.put(f"{uri}/{name}", content)
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "../../evil.safetensors"}}
    store.put(f"{uri}/model.safetensors.index.json", json.dumps(index).encode())
    for name in ("part-1.safetensors", "part-2.safetensors", "part-3.safetensors"):
        store.put(f"{uri}/{name}", name.encode())
    fetched = fetch_model(uri, store, tmp_path)
    assert sorted(path.name for path in fetched.path.glob("*.safetensors*")) == [
        "model.safetensors.index.json",
        "part-1.safetensors",
        "part-2.safetensors",
    ]


def test_a_changed_readme_does_not_change_the_digest(hub, store, tmp_path, model_folder):
    before = fetch_model("hf://tiny/llama", store, tmp_path)
    changed = {**files_in(model_folder), "README.md": b"corrected", "onnx/model.onnx": b"new"}
    commit = hub.repository("tiny/llama").commit(changed)
    after = fetch_model("hf://tiny/llama", store, tmp_path)
    assert after.digest == before.digest
    assert after.revision == commit != before.revision


# Later stages: the copy under the output prefix


@pytest.fixture
def config(bucket: str) -> TrainerConfig:
    return train_config(output={"uri": f"s3://{bucket}/out"})


def pod(folder: Path, cache: Path) -> RuntimeEnv:
    """A new pod; another pod may share its cache."""
    folder.mkdir()
    return RuntimeEnv(rank=0, world_size=1, local_rank=0, local_world_size=1, scratch=folder, cache=cache)


def prepare(config: TrainerConfig, uri: str, store: ObjectStore, cache: Path) -> TrainerConfig:
    """What the prepare stage does with the base model."""
    fetched = fetch_model(uri, store, cache)
    store_copy(fetched, store, config.output_uri)
    assert config.prepared is not None
    prepared = config.prepared.model_copy(update={"model_digest": fetched.digest, "model_revision": fetched.revision})
    spec = config.spec.model_copy(update={"model": config.spec.model.model_copy(update={"uri": uri})})
    return config.model_copy(update={"prepared": prepared, "spec": spec})


def test_a_restart_gets_the_prepared_model_after_the_revision_moved_and_the_hub_is_down(
    hub, store, tmp_path, model_folder, config, monkeypatch
):
    run = prepare(config, "hf://tiny/llama", store, tmp_path / "cache")
    hub.repository("tiny/llama").commit({**files_in(model_folder), "config.json": b"{}"})
    moved = prepared_model(run, store, pod(tmp_path / "a", tmp_path / "cache-a"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    gone = prepared_model(run, store, pod(tmp_path / "b", tmp_path / "cache-b"))
    for model in (moved, gone):
        assert model.digest == run.prepared.model_digest
        assert (model.path / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()
        assert (model.path / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("uri", "requested"), [("hf://tiny/llama", ""), ("hf://tiny/llama@v1", "v1")])
def test_the_preparation_records_the_requested_revision_and_its_commit(
    hub, store, bucket, storage_settings, tmp_path, uri, requested
):
    """The operator uses both to decide whether a spec with the commit is the same run."""
    place = PrepareFixture(store, bucket, storage_settings, tmp_path)
    train = place.put("train.jsonl", jsonl(chats()))
    prepared = place.prepare(uri, {"train": [{"uri": train}]})
    assert prepared.requested_revision == requested
    assert prepared.model_revision == hub.repository("tiny/llama").revisions["v1"]


def test_a_restart_gets_the_prepared_model_after_the_prefix_has_changed(store, bucket, tmp_path, model_folder, config):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    run = prepare(config, uri, store, tmp_path / "cache")
    store.put(f"{uri}/config.json", b'{"model_type": "bert"}')
    store.delete(f"{uri}/model.safetensors")
    model = prepared_model(run, store, pod(tmp_path / "a", tmp_path / "cache-a"))
    assert (model.path / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()
    assert (model.path / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()


def test_preparing_again_uploads_only_a_copy_that_is_incomplete(store, bucket, tmp_path, model_folder, config):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    run = prepare(config, uri, store, tmp_path / "cache")
    copy = base_model_folder(run.output_uri, run.prepared.model_digest)
    before = store.head(f"{copy}/files.json")
    store.delete(f"{copy}/config.json")
    prepare(config, uri, store, tmp_path / "cache")
    assert store.get(f"{copy}/config.json") == (model_folder / "config.json").read_bytes()
    assert before is not None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("files.json", None, "the base model of this run is missing at s3://"),
        ("files.json", b'{"source": "x", "files": []}', "lists another model"),
        ("config.json", None, "a file of the base model of this run is missing"),
        ("config.json", b"{}", "does not match the digests"),
    ],
)
def test_a_missing_or_damaged_copy_is_reported(store, bucket, tmp_path, model_folder, config, name, content, message):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    run = prepare(config, uri, store, tmp_path / "cache")
    target = f"{base_model_folder(run.output_uri, run.prepared.model_digest)}/{name}"
    store.delete(target)
    if content is not None:
        store.put(target, content)
    with pytest.raises(BadConfigError, match=message) as caught:
        prepared_model(run, store, pod(tmp_path / "a", tmp_path / "cache-a"))
    assert "spec.runNonce" in caught.value.advice


def test_a_local_folder_that_has_changed_since_prepare_is_reported(store, tmp_path, model_folder, config):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files_in(model_folder).items():
        (folder / name).write_bytes(content)
    run = prepare(config, f"file://{folder}", store, tmp_path / "cache")
    runtime = pod(tmp_path / "a", tmp_path / "cache")
    assert prepared_model(run, store, runtime).path == folder
    (folder / "README.md").write_text("does not matter")
    assert prepared_model(run, store, runtime).path == folder
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelUnusableError, match="has changed since the run was prepared"):
        prepared_model(run, store, runtime)


# Caches that other jobs write to


def test_files_in_the_cache_that_another_job_changed_are_not_used(store, bucket, tmp_path, model_folder, config):
    """Size and modification time are the same; only the content differs."""
    uri, cache = f"s3://{bucket}/models/tiny", tmp_path / "cache"
    store.upload_folder(model_folder, uri)
    run = prepare(config, uri, store, cache)
    weights = prepared_model(run, store, pod(tmp_path / "a", cache)).path / "model.safetensors"
    good, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (prepared_model(run, store, pod(tmp_path / "b", cache)).path / "model.safetensors").read_bytes() == good
    weights.write_bytes(bytes(len(good)))
    assert (fetch_model(uri, store, cache).path / "model.safetensors").read_bytes() == good


def test_a_file_that_another_job_added_is_removed(store, bucket, tmp_path, model_folder, config):
    uri, cache = f"s3://{bucket}/models/tiny", tmp_path / "cache"
    store.upload_folder(model_folder, uri)
    run = prepare(config, uri, store, cache)
    path = prepared_model(run, store, pod(tmp_path / "a", cache)).path
    (path / "adapter_config.json").write_text("{}")
    assert not (prepared_model(run, store, pod(tmp_path / "b", cache)).path / "adapter_config.json").exists()


def test_the_processes_of_a_pod_verify_a_model_once(store, bucket, tmp_path, model_folder, config, monkeypatch):
    uri, cache = f"s3://{bucket}/models/tiny", tmp_path / "cache"
    store.upload_folder(model_folder, uri)
    run, runtime = prepare(config, uri, store, cache), pod(tmp_path / "a", cache)
    hashed, sha256_of = [], fetch.sha256_of
    monkeypatch.setattr(fetch, "sha256_of", lambda path: hashed.append(path.name) or sha256_of(path))
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: prepared_model(run, store, runtime).path, range(8)))
    assert len(paths) == 1
    assert len(hashed) == len(set(hashed)) > 0
