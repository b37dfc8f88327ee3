"""Files of dataset repositories on the hub as sources of records."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fake_hub import TOKEN, FakeHub
from finetune_api.trainer_config import StorageSettings
from finetune_api.v1alpha1 import Source
from finetune_trainer.data.sources import SourceFile, fetch_sources
from finetune_trainer.errors import AccessDeniedError, BadDataError, StorageUnreachableError
from finetune_trainer.hub import DatasetAddress, dataset_addresses, resolve_model
from finetune_trainer.store import ObjectStore

FILES = {
    "README.md": b"about",
    "data/train-0.jsonl": b"zero",
    "data/train-1.jsonl": b"one",
    "data/deep/train-2.jsonl": b"two",
    "data/export[final] (1).jsonl": b"brackets",
    "data/exportf (1).jsonl": b"no brackets",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub().running() as server:
        server.repository("datasets/tiny/reviews").commit(FILES, "v1", "refs/convert/parquet")
        server.repository("datasets/squad").commit({"train.csv": b"one name", "data/x.csv": b"below"})
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def fetched(uri: str, folder: Path) -> tuple[SourceFile, ...]:
    nowhere = ObjectStore.connect(StorageSettings(endpoint="http://127.0.0.1:9", path_style=True))
    return fetch_sources((Source(uri=uri),), "spec.data.train", nowhere, folder)


@pytest.mark.parametrize(
    ("address", "contents"),
    [
        ("tiny/reviews/data/train-0.jsonl", [b"zero"]),
        ("tiny/reviews@v1/data/train-0.jsonl", [b"zero"]),
        ("tiny/reviews@refs/convert/parquet/data/train-0.jsonl", [b"zero"]),
        ("tiny/reviews/data/*-?.jsonl", [b"zero", b"one"]),
        ("tiny/reviews/data/*/*", [b"two"]),
        ("tiny/reviews/data/export[final] (1).jsonl", [b"brackets"]),
        ("tiny/reviews/data/export[f] (1).jsonl", [b"no brackets"]),
        ("squad@main/train.csv", [b"one name"]),
        ("squad/train.csv", [b"one name"]),
        ("squad/data/x.csv", [b"below"]),
    ],
)
def test_files_are_fetched_by_name_or_pattern(
    hub: FakeHub, tmp_path: Path, address: str, contents: list[bytes]
) -> None:
    files = fetched(f"hf://datasets/{address}", tmp_path)
    assert [file.path.read_bytes() for file in files] == contents


def test_a_file_is_recorded_with_its_commit_and_keeps_its_name(hub: FakeHub, tmp_path: Path) -> None:
    (file,) = fetched("hf://datasets/tiny/reviews/data/train-1.jsonl", tmp_path)
    commit = hub.repository("datasets/tiny/reviews").revisions["main"]
    assert file.uri == f"hf://datasets/tiny/reviews@{commit}/data/train-1.jsonl"
    assert file.path.name == "train-1.jsonl"
    (again,) = fetched(file.uri, tmp_path / "again")
    assert (again.uri, again.sha256) == (file.uri, file.sha256)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("tiny/reviews/data/*.csv", BadDataError, r"matches no file"),
        ("tiny/other/x.csv", BadDataError, r"has no such dataset or revision \(404\)"),
        ("tiny/reviews@v9/data/train-0.jsonl", BadDataError, r"has no such dataset or revision \(404\)"),
        ("tiny", BadDataError, r"must name files of a dataset"),
    ],
)
def test_a_missing_repository_or_file_is_bad_data(
    hub: FakeHub, tmp_path: Path, address: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fetched(f"hf://datasets/{address}" if address != "tiny" else "hf://datasets/tiny@main", tmp_path)


def test_a_wrong_token_and_changed_content_are_reported(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.changed_on_the_way.add("data/train-0.jsonl")
    with pytest.raises(StorageUnreachableError, match="does not match its digest"):
        fetched("hf://datasets/tiny/reviews/data/train-0.jsonl", tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AccessDeniedError, match="denies access"):
        fetched("hf://datasets/tiny/reviews/data/train-0.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("a/*", "a/.."),
        ("../../*.jsonl", "../../evil.jsonl"),
        ("*/*/*.jsonl", "../../evil.jsonl"),
        ("b/../*", "b/../c.jsonl"),
        ("/etc/*", "/etc/evil.jsonl"),
        ("d//*", "d//e.jsonl"),
    ],
)
def test_a_hostile_repository_cannot_write_outside_the_folder(
    hub: FakeHub, tmp_path: Path, pattern: str, name: str
) -> None:
    hub.repository("datasets/tiny/evil").commit({name: b"x"})
    expected = f"the file {name!r}, which must be a path within the repository"
    with pytest.raises(BadDataError, match=re.escape(expected)) as caught:
        fetched(f"hf://datasets/tiny/evil/{pattern}", tmp_path / "sources")
    assert "rename the file in the repository" in caught.value.advice
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_name_that_the_client_rejects_is_bad_data(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Invalid filename")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(BadDataError, match=r"the file 'data/train-0\.jsonl' cannot be downloaded"):
        fetched("hf://datasets/tiny/reviews/data/train-0.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ("a/b/c.csv", [("a/b", "", "c.csv"), ("a", "", "b/c.csv")]),
        ("a/b@v1/c/d.csv", [("a/b", "v1", "c/d.csv")]),
        ("a@v1/b/c.csv", [("a", "v1", "b/c.csv")]),
        ("a/b.csv", [("a", "", "b.csv")]),
        ("a/b@refs/pr/7/c.csv", [("a/b", "refs/pr/7", "c.csv")]),
        ("a/b/c@d.csv", [("a/b", "", "c@d.csv"), ("a", "", "b/c@d.csv")]),
    ],
)
def test_possible_meanings_of_an_address(rest: str, expected: list[tuple[str, str, str]]) -> None:
    assert dataset_addresses(f"hf://datasets/{rest}") == tuple(DatasetAddress(*each) for each in expected)


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"{}", b"[]", b"null"])
def test_a_foreign_page_instead_of_the_hub_is_not_a_program_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: bytes
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(StorageUnreachableError, match="did not respond like a Hugging Face Hub"):
                fetched("hf://datasets/tiny/reviews/data/x.jsonl", tmp_path)
            with pytest.raises(StorageUnreachableError, match="did not respond like a Hugging Face Hub"):
                resolve_model("hf://tiny/model")
        finally:
            server.shutdown()
            thread.join()
