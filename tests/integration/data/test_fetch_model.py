"""The base model from the hub's protocol, from object storage and from a folder; the servers are real ones."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import tiny_models
from finetune_trainer.errors import AccessDeniedError, ModelUnusableError, StorageUnreachableError
from finetune_trainer.model.fetch import fetch_model
from finetune_trainer.model.tokenizer import load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot download asks for; one private model, tiny/llama."""

    folder: Path
    seen: Counter[str]
    agents: set[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        self.seen[f"{self.command} {path}"] += 1
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b'{"error": "Invalid username or password."}', with_body)
        elif path in (f"/api/models/tiny/llama/revision/{revision}" for revision in ("main", "v1", COMMIT)):
            self._send(200, json.dumps(self._model()).encode(), with_body)
        elif path == f"/api/models/tiny/llama/tree/{COMMIT}":
            self._send(200, json.dumps(self._tree()).encode(), with_body)
        elif path.startswith(f"/tiny/llama/resolve/{COMMIT}/") and (self.folder / Path(path).name).exists():
            self._send(200, (self.folder / Path(path).name).read_bytes(), with_body)
        elif path.startswith("/api/models/tiny/llama/revision/"):
            self._send(404, b'{"error": "Invalid rev id"}', with_body, **{"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(404, b'{"error": "Repository not found"}', with_body, **{"X-Error-Code": "RepoNotFound"})

    def _model(self) -> dict[str, object]:
        names = sorted(path.name for path in self.folder.iterdir())
        return {
            "id": "tiny/llama",
            "modelId": "tiny/llama",
            "sha": COMMIT,
            "siblings": [{"rfilename": n} for n in names],
        }

    def _tree(self) -> list[dict[str, object]]:
        files = sorted(self.folder.iterdir())
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _blob_id(path)} for path in files
        ]

    def _send(self, status: int, body: bytes, with_body: bool, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _blob_id(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), tiny_models.CHATML)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody should fetch")
    (folder / "README.md").write_text("not needed either")
    return folder


@pytest.fixture
def hub(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {"folder": model_folder, "seen": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_model_is_fetched_once_without_what_is_not_needed(hub, store, tmp_path, model_folder):
    first = fetch_model("hf://tiny/llama", store, tmp_path)
    names = {path.name for path in first.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "README.md"}
    assert (first.path / "model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()
    assert load_tokenizer(first.path).chat_template == tiny_models.CHATML

    again = fetch_model(f"hf://tiny/llama@{COMMIT}", store, tmp_path)
    assert again.digest == first.digest
    assert hub.seen[f"GET /tiny/llama/resolve/{COMMIT}/model.safetensors"] == 1


def test_a_named_revision_is_asked_for(hub, store, tmp_path):
    fetch_model("hf://tiny/llama@v1", store, tmp_path)
    assert hub.seen["GET /api/models/tiny/llama/revision/v1"]


@pytest.mark.parametrize("token", ["hf_wrong", ""])
def test_a_wrong_or_missing_token_is_access_denied(hub, store, tmp_path, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessDeniedError, match=r"hf://tiny/llama: http://127.* refuses access \(401\)") as caught:
        fetch_model("hf://tiny/llama", store, tmp_path)
    assert "HF_TOKEN" in caught.value.advice


@pytest.mark.parametrize("uri", ["hf://tiny/other", "hf://tiny/llama@v9"])
def test_a_model_or_revision_that_is_not_there_is_unusable(hub, store, tmp_path, uri):
    with pytest.raises(ModelUnusableError, match=r"has no such model or revision \(404\)"):
        fetch_model(uri, store, tmp_path)


def test_a_hub_that_does_not_answer_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageUnreachableError, match=r"http://127\.0\.0\.1:9 does not answer"):
        fetch_model("hf://tiny/llama", store, tmp_path)


def test_a_cached_hub_model_serves_when_the_hub_is_away_and_that_is_allowed(hub, store, tmp_path, monkeypatch):
    fetched = fetch_model("hf://tiny/llama", store, tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch_model("hf://tiny/llama", store, tmp_path, offline_ok=True) == fetched
    with pytest.raises(StorageUnreachableError):
        fetch_model("hf://tiny/llama", store, tmp_path)


def test_a_model_in_storage_has_the_digest_of_the_folder_it_came_from(store, bucket, tmp_path, model_folder):
    uri = f"s3://{bucket}/models/tiny"
    store.upload_folder(model_folder, uri)
    from_storage = fetch_model(uri, store, tmp_path)
    assert from_storage.digest == fetch_model(f"file://{model_folder}", store, tmp_path).digest
    assert not (from_storage.path / "pytorch_model.bin").exists()
    assert fetch_model(uri + "/", store, tmp_path).path == from_storage.path


def test_a_changed_model_in_storage_is_fetched_anew(store, bucket, tmp_path, model_folder):
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


def test_processes_of_a_node_hash_a_model_once(store, tmp_path, model_folder, monkeypatch):
    hashed, file_digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(file.name) or file_digest(file, kind))
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: fetch_model(f"file://{model_folder}", store, tmp_path), range(8)))
    assert len(folders) == 1
    assert len(hashed) == len(set(hashed))


@pytest.mark.parametrize("uri", ["s3://{bucket}/nothing", "file:///no/such/folder"])
def test_an_address_without_a_model_is_unusable(store, bucket, tmp_path, uri):
    with pytest.raises(ModelUnusableError):
        fetch_model(uri.format(bucket=bucket), store, tmp_path)
