"""ObjectStore against a real server."""

import hashlib
import os
import resource
import threading
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from boto3.exceptions import Boto3Error

from faulty_store import FaultyStoreProxy
from finetune_api.constants import Env
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.errors import (
    AccessDeniedError,
    BadConfigError,
    DiskFullError,
    ObjectMissingError,
    StorageProtocolError,
    StorageUnreachableError,
)
from finetune_trainer.store import Conditions, ObjectStore, RetryPolicy, join, transfer
from killable_store import KillableStore
from store_proxy import Conditions as Handled
from store_proxy import StoreProxy

MIB = 1 << 20
REQUESTS = {
    "get": lambda store, uri, path: store.get(uri),
    "get_json": lambda store, uri, path: store.get_json(uri),
    "put": lambda store, uri, path: store.put(uri, b"x"),
    "put_if_absent": lambda store, uri, path: store.put_if_absent(uri, b"x"),
    "put_if_match": lambda store, uri, path: store.put_if_match(uri, b"x", '"0"'),
    "get_version": lambda store, uri, path: store.get_version(uri, most_bytes=9),
    "sha256": lambda store, uri, path: store.sha256(uri),
    "copy": lambda store, uri, path: store.copy(uri, f"{uri}-copy"),
    "head": lambda store, uri, path: store.head(uri),
    "exists": lambda store, uri, path: store.exists(uri),
    "delete": lambda store, uri, path: store.delete(uri),
    "delete_many": lambda store, uri, path: store.delete_many([uri]),
    "list": lambda store, uri, path: list(store.list(uri)),
    "glob": lambda store, uri, path: store.glob(uri + "*"),
    "read_into": lambda store, uri, path: store.read_into(uri, memoryview(bytearray(1))),
    "download": lambda store, uri, path: store.download(uri, path / "new"),
    "upload": lambda store, uri, path: store.upload(path / "file", uri),
    "download_folder": lambda store, uri, path: store.download_folder(uri, path / "folder"),
    "upload_folder": lambda store, uri, path: store.upload_folder(path, uri),
    "check_read_write": lambda store, uri, path: store.check_read_write(uri),
}


IMPATIENT = RetryPolicy(total_seconds=2.0, attempts_per_request=1)


@pytest.fixture
def store(storage_settings: StorageSettings) -> ObjectStore:
    return ObjectStore.connect(storage_settings, retry=IMPATIENT)


@pytest.fixture(scope="module")
def shared_bucket(store_server: EmbeddedStore) -> str:
    """Creating a bucket takes longer than these tests."""
    store_server.create_bucket("object-store")
    return "object-store"


@pytest.fixture
def folder_uri(request: pytest.FixtureRequest, shared_bucket: str) -> str:
    """An address for this test only."""
    return f"s3://{shared_bucket}/{request.node.name.replace('[', '-').replace(']', '')}"


def test_a_stored_object_is_read_back_and_can_be_deleted(store: ObjectStore, folder_uri: str) -> None:
    uri = join(folder_uri, "a.json")
    store.put(uri, memoryview(b'{"a": 1}'), content_type="application/json")
    assert store.get_json(uri) == {"a": 1}
    info = store.head(uri)
    assert info is not None
    assert (info.uri, info.size) == (uri, 8)
    store.delete(uri)
    store.delete(uri)
    assert not store.exists(uri)
    with pytest.raises(ObjectMissingError, match=r"a\.json does not exist"):
        store.get(uri)


@pytest.mark.parametrize("trouble", ["internal-error", "reset", "unanswered"])
def test_a_paced_object_is_sent_completely_on_a_retry(
    store_server: EmbeddedStore, storage_settings: StorageSettings, trouble: str
) -> None:
    """The pace is called for every try, because failed tries were also sent."""
    store_server.create_bucket(f"paced-{trouble}")
    content, paced = os.urandom(3 * MIB // 4 + 1), list[int]()
    with FaultyStoreProxy(store_server) as proxy:
        behind = storage_settings.model_copy(update={"endpoint": proxy.settings().endpoint})
        store = ObjectStore.connect(behind, retry=IMPATIENT, sign_bodies=False)
        store.put(f"s3://paced-{trouble}/{trouble}/blob", memoryview(content), pace=paced.append)
        assert store.get(f"s3://paced-{trouble}/{trouble}/blob") == content
    assert sum(paced) == 2 * len(content)


def test_many_objects_are_deleted_together_and_missing_ones_are_ignored(store: ObjectStore, folder_uri: str) -> None:
    uris = [join(folder_uri, f"{number:04d} ü&<.bin") for number in range(12)]
    for uri in uris[:10]:
        store.put(uri, b"x")
    sent: list[Any] = []
    store._client.meta.events.register("request-created.s3.DeleteObjects", lambda request, **_: sent.append(request))
    store.delete_many([])
    store.delete_many([*uris[1:4], *uris[5:]])
    assert [info.uri for info in store.list(folder_uri)] == [uris[0], uris[4]]
    (request,) = sent
    assert b64decode(request.headers["Content-MD5"]) == hashlib.md5(request.body).digest(), "older servers ask for it"


def test_more_objects_than_the_limit_are_deleted_by_several_requests(store: ObjectStore, folder_uri: str) -> None:
    uris = [join(folder_uri, f"{number:04d}") for number in range(1001)]
    store.put(uris[0], b"x")
    store.put(uris[1000], b"x")
    store.delete_many(uris)
    assert list(store.list(folder_uri)) == []


def test_an_object_that_storage_does_not_delete_is_reported_with_the_reason(
    store: ObjectStore, folder_uri: str
) -> None:
    def refuse(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Errors"] = [{"Key": "b", "Code": "AccessDenied", "Message": "locked"}]

    store._client.meta.events.register("after-call.s3.DeleteObjects", refuse)
    with pytest.raises(AccessDeniedError, match=r"denies access to s3://object-store/b: AccessDenied locked"):
        store.delete_many([join(folder_uri, "a")])


def test_an_object_is_created_by_exactly_one_of_many_writers(store: ObjectStore, folder_uri: str) -> None:
    uri = join(folder_uri, "claim")
    contents = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda content: store.put_if_absent(uri, content), contents))
    assert won.count(True) == 1
    assert store.get(uri) == contents[won.index(True)]


def test_an_unanswered_conditional_put_that_succeeded_counts_as_ours(store: ObjectStore, folder_uri: str) -> None:
    """The first response is lost; the retry is rejected, but the stored bytes are ours."""
    uri = join(folder_uri, "claim")
    lost = threading.Event()

    def lose_first_answer(**_: Any) -> None:
        if not lost.is_set():
            lost.set()
            raise ConnectionResetError("answer lost")

    store._client.meta.events.register("after-call.s3.PutObject", lose_first_answer)
    assert store.put_if_absent(uri, b"mine")
    assert lost.is_set()
    assert not store.put_if_absent(uri, b"mine")


def test_an_object_is_replaced_by_exactly_one_of_many_writers(store: ObjectStore, folder_uri: str) -> None:
    uri = join(folder_uri, "record")
    store.put(uri, b"old")
    contents = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda content: store.put_if_match(uri, content, etag_of(store, uri, b"old")), contents))
    assert won.count(True) == 1
    assert store.get(uri) == contents[won.index(True)]


def etag_of(store: ObjectStore, uri: str, content: bytes) -> str:
    """ETag of a small object with this content, whether or not it is still stored."""
    other = f"{uri}-copy"
    store.put(other, content)
    version = store.get_version(other, most_bytes=100)
    assert version is not None
    assert version.content == content
    return version.etag


def test_an_object_that_was_replaced_or_deleted_is_not_replaced(store: ObjectStore, folder_uri: str) -> None:
    uri = join(folder_uri, "record")
    old = etag_of(store, uri, b"old")
    assert store.get_version(uri, most_bytes=100) is None
    assert not store.put_if_match(uri, b"new", old)
    store.put(uri, b"other")
    assert not store.put_if_match(uri, b"new", old)
    assert store.get(uri) == b"other"
    with pytest.raises(StorageProtocolError, match="has 5 bytes, and must have at most 4"):
        store.get_version(uri, most_bytes=4)


def test_an_unanswered_replacement_that_succeeded_counts_as_ours(store: ObjectStore, folder_uri: str) -> None:
    uri = join(folder_uri, "record")
    store.put(uri, b"old")
    lost = threading.Event()

    def lose_first_answer(**_: Any) -> None:
        if not lost.is_set():
            lost.set()
            raise ConnectionResetError("answer lost")

    old = etag_of(store, uri, b"old")
    store._client.meta.events.register("after-call.s3.PutObject", lose_first_answer)
    assert store.put_if_match(uri, b"mine", old)
    assert lost.is_set()
    assert not store.put_if_match(uri, b"mine", old)


@pytest.mark.parametrize(
    ("handled", "found"),
    [
        (Handled.HONOURED, Conditions.HONOURED),
        (Handled.IGNORED, Conditions.IGNORED),
        (Handled.ONLY_ABSENT, Conditions.IGNORED),
        (Handled.REFUSED, Conditions.REFUSED),
        (Handled.REFUSED_AS_BAD, Conditions.REFUSED),
    ],
)
def test_a_server_that_cannot_replace_conditionally_is_detected(
    store_server: EmbeddedStore, store: ObjectStore, folder_uri: str, handled: Handled, found: Conditions
) -> None:
    with StoreProxy(store_server, handled) as proxy:
        assert ObjectStore.connect(proxy.settings(), retry=IMPATIENT).swap_conditions(folder_uri) is found
    assert list(store.list(folder_uri)) == []


@pytest.mark.parametrize("size", [0, 5, 12 * MIB + 1], ids=["empty", "small", "in parts"])
def test_an_object_is_copied_within_the_server(
    store_server: EmbeddedStore,
    store: ObjectStore,
    folder_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    monkeypatch.setattr(transfer._COPY_CONFIG, "multipart_threshold", 5 * MIB)
    monkeypatch.setattr(transfer._COPY_CONFIG, "multipart_chunksize", 5 * MIB)
    content = os.urandom(size)
    store.put(join(folder_uri, "from (1) ü.bin"), content)
    with StoreProxy(store_server) as proxy:
        behind = ObjectStore.connect(proxy.settings(), retry=IMPATIENT)
        behind.copy(join(folder_uri, "from (1) ü.bin"), join(folder_uri, "to/it.bin"))
        assert proxy.count("GET") == 0, "no byte passes through the client"
        assert proxy.count("PUT", "to/it.bin") == (3 if size > MIB else 1)
        assert behind.sha256(join(folder_uri, "to/it.bin")) == hashlib.sha256(content).hexdigest()
    assert store.get(join(folder_uri, "to/it.bin")) == content
    with pytest.raises(ObjectMissingError, match=f"{folder_uri}/absent does not exist"):
        store.copy(join(folder_uri, "absent"), join(folder_uri, "to/it.bin"))


def test_a_server_that_cannot_copy_is_reported(
    store_server: EmbeddedStore, store: ObjectStore, folder_uri: str
) -> None:
    store.put(join(folder_uri, "from"), b"x")
    with StoreProxy(store_server, copies=False) as proxy:
        behind = ObjectStore.connect(proxy.settings(), retry=IMPATIENT)
        with pytest.raises(StorageProtocolError, match="rejects a request"):
            behind.copy(join(folder_uri, "from"), join(folder_uri, "to"))


def test_listing_pages_through_more_than_a_thousand_objects(store: ObjectStore, folder_uri: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.put(join(folder_uri, f"{n:05d}"), b""), range(1010)))
    found = [info.uri for info in store.list(folder_uri + "/")]
    assert found == [join(folder_uri, f"{number:05d}") for number in range(1010)]


def test_patterns_find_names_but_do_not_cross_folders(store: ObjectStore, folder_uri: str) -> None:
    for name in ("a-1.jsonl", "a-2.jsonl", "b-1.jsonl", "deep/a-3.jsonl"):
        store.put(join(folder_uri, name), b"x")

    def names(pattern: str) -> list[str]:
        return [info.uri.removeprefix(folder_uri + "/") for info in store.glob(join(folder_uri, pattern))]

    assert names("*.jsonl") == ["a-1.jsonl", "a-2.jsonl", "b-1.jsonl"]
    assert names("a-?.jsonl") == ["a-1.jsonl", "a-2.jsonl"]
    assert names("[b]-*") == ["b-1.jsonl"]
    assert names("*/a*") == ["deep/a-3.jsonl"]
    assert names("b-1.jsonl") == ["b-1.jsonl"]
    assert names("missing") == names("missing*") == []


NAMES = ["My Data/train (1).jsonl", "a+b.jsonl", "ä ö/ü.jsonl", "a&b=c%20d#e", 'it\'s "quoted".txt']


@pytest.mark.parametrize("name", NAMES)
def test_a_key_may_have_any_printable_character(store: ObjectStore, folder_uri: str, tmp_path: Path, name: str) -> None:
    folder = f"{folder_uri.partition('/test')[0]}/any-name"
    uri = join(folder, name)
    store.put(uri, name.encode())
    assert [info.uri for info in store.glob(uri)] == [uri]
    assert uri in [info.uri for info in store.list(folder)]
    store.download(uri, tmp_path / "file")
    assert (tmp_path / "file").read_text() == name
    store.delete_many([uri])
    assert not store.exists(uri)


def test_the_key_of_an_object_is_not_a_pattern_even_if_it_looks_like_one(store: ObjectStore, folder_uri: str) -> None:
    for name in ("export[final].jsonl", "exportf.jsonl", "part*.csv", "part1.csv"):
        store.put(join(folder_uri, name), b"x")

    def names(pattern: str) -> list[str]:
        return [info.uri.removeprefix(folder_uri + "/") for info in store.glob(join(folder_uri, pattern))]

    assert names("export[final].jsonl") == ["export[final].jsonl"]
    assert names("part*.csv") == ["part*.csv"]
    assert names("export[f-i].jsonl") == ["exportf.jsonl"]


def test_objects_are_deleted_one_by_one_if_the_server_lacks_multi_object_delete(
    store_server: EmbeddedStore, store: ObjectStore, folder_uri: str
) -> None:
    uris = [join(folder_uri, f"{number} ä+b.bin") for number in range(5)]
    for uri in uris:
        store.put(uri, b"x")
    with StoreProxy(store_server, deletes_many=False) as proxy:
        behind = ObjectStore.connect(proxy.settings(), retry=IMPATIENT)
        behind.delete_many([*uris[:3], join(folder_uri, "absent")])
        behind.delete_many(uris[3:4])
        assert proxy.count("POST") == 1, "it is not asked again"
    assert [info.uri for info in store.list(folder_uri)] == uris[4:]


def test_an_endpoint_may_have_a_path(
    store_server: EmbeddedStore, store: ObjectStore, folder_uri: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with StoreProxy(store_server, path="/storage/v1/s3") as proxy:
        behind = ObjectStore.connect(proxy.settings(), retry=IMPATIENT)
        behind.upload(tmp_path / "file", join(folder_uri, "a b.bin"))
        assert behind.get(join(folder_uri, "a b.bin")) == b"content"
        assert [info.size for info in behind.list(folder_uri)] == [7]
        behind.delete_many([join(folder_uri, "a b.bin")])
        assert {request.path.partition("/object-store")[0] for request in proxy.requests} == {"/storage/v1/s3"}
    assert list(store.list(folder_uri)) == []


@pytest.mark.parametrize("size", [0, 1, 40 * MIB + 3])
def test_files_are_transferred_completely(store: ObjectStore, folder_uri: str, tmp_path: Path, size: int) -> None:
    content = os.urandom(min(size, MIB)) * max(1, size // MIB) if size else b""
    source, uri = tmp_path / "source", join(folder_uri, "file")
    source.write_bytes(content)
    store.upload(source, uri)
    store.download(uri, tmp_path / "sub" / "target")
    assert hashlib.sha256((tmp_path / "sub" / "target").read_bytes()).digest() == hashlib.sha256(content).digest()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["target"]
    buffer = bytearray(len(content))
    store.read_into(uri, memoryview(buffer))
    assert buffer == content


def test_folders_keep_their_structure(store: ObjectStore, folder_uri: str, tmp_path: Path) -> None:
    for name in ("config.json", "deep/er/weights"):
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    uploaded = store.upload_folder(tmp_path / "from", folder_uri)
    assert uploaded == [join(folder_uri, "config.json"), join(folder_uri, "deep/er/weights")]
    got = store.download_folder(folder_uri, tmp_path / "to")
    assert [path.relative_to(tmp_path / "to").as_posix() for path in got] == ["config.json", "deep/er/weights"]
    assert [path.read_text() for path in got] == ["config.json", "deep/er/weights"]
    with pytest.raises(ObjectMissingError, match="no objects exist under"):
        store.download_folder(folder_uri + "-other", tmp_path / "none")


def test_reading_into_a_buffer_of_another_length_is_rejected(store: ObjectStore, folder_uri: str) -> None:
    store.put(folder_uri, b"12345")
    with pytest.raises(StorageProtocolError, match="has 5 bytes, expected 4"):
        store.read_into(folder_uri, memoryview(bytearray(4)))


def test_an_object_that_is_not_json_is_reported(store: ObjectStore, folder_uri: str) -> None:
    store.put(folder_uri, b"{")
    with pytest.raises(StorageProtocolError, match="must be JSON"):
        store.get_json(folder_uri)


def test_the_check_of_read_and_write_access_leaves_no_objects(store: ObjectStore, folder_uri: str) -> None:
    store.check_read_write(folder_uri)
    assert list(store.list(folder_uri)) == []


def test_a_missing_object_of_many_is_reported(store: ObjectStore, folder_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ObjectMissingError, match=f"{folder_uri}/absent does not exist"):
        store.download(join(folder_uri, "absent"), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_fit_on_the_disk_is_reported(store: ObjectStore, folder_uri: str, tmp_path: Path) -> None:
    """A file-size limit of the process simulates the full disk; the kernel rejects the write at the same place."""
    store.put(folder_uri, bytes(40 * MIB))
    get_object, bodies = store._client.get_object, []

    def remembered(**request: Any) -> Any:
        answer = get_object(**request)
        bodies.append(answer["Body"])
        return answer

    store._client.get_object = remembered
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=f"no space left to write {tmp_path}/file"):
            store.download(folder_uri, tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert bodies
    assert all(body._raw_stream.closed for body in bodies), "what was not read whole holds no connection"


@pytest.mark.parametrize("name", [name for name in REQUESTS if name not in ("delete", "download_folder")])
def test_a_missing_bucket_is_reported(store: ObjectStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadConfigError, match="'no-such-bucket' does not exist"):
        REQUESTS[name](store, "s3://no-such-bucket/key", tmp_path)


@pytest.mark.parametrize("name", REQUESTS)
def test_wrong_credentials_are_rejected(
    storage_settings: StorageSettings, folder_uri: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessDeniedError, match="denies access"):
        REQUESTS[name](ObjectStore.connect(storage_settings, retry=IMPATIENT), folder_uri, tmp_path)


def test_a_client_uses_credentials_that_are_replaced_in_their_files(
    storage_settings: StorageSettings, folder_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client in use, for single requests and for a transfer of many parts."""
    good = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    folder = tmp_path / "credentials"
    folder.mkdir()
    monkeypatch.setenv(Env.CREDENTIALS, str(folder))

    def write(**change: str) -> None:
        for name, value in (good | change).items():
            (folder / name).write_text(value)

    write()
    store = ObjectStore.connect(storage_settings, retry=IMPATIENT)
    (tmp_path / "file").write_bytes(bytes(40 * MIB))
    store.upload(tmp_path / "file", folder_uri)
    write(AWS_SECRET_ACCESS_KEY="expired")
    with pytest.raises(AccessDeniedError):
        store.head(folder_uri)

    refused: list[int] = []

    def rotate(http_response: Any, **_: Any) -> None:
        if http_response.status_code == 403:
            refused.append(403)
            write()

    store._client.meta.events.register("after-call", rotate)
    store.download(folder_uri, tmp_path / "target")
    assert (tmp_path / "target").stat().st_size == 40 * MIB
    assert refused


def test_missing_credentials_are_reported(
    storage_settings: StorageSettings, folder_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(AccessDeniedError, match="no usable credentials"):
        ObjectStore.connect(storage_settings, retry=IMPATIENT).get(folder_uri)


@pytest.mark.parametrize("name", REQUESTS)
def test_an_unreachable_server_is_reported(storage_settings: StorageSettings, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    nowhere = storage_settings.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    store = ObjectStore.connect(nowhere, retry=RetryPolicy(total_seconds=0.0, attempts_per_request=1))
    with pytest.raises(StorageUnreachableError, match=r"http://127\.0\.0\.1:9 does not answer"):
        REQUESTS[name](store, "s3://test-bucket/key", tmp_path)


def test_a_server_that_dies_during_a_transfer_is_waited_for(killable: KillableStore, tmp_path: Path) -> None:
    store: ObjectStore = ObjectStore.connect(killable.settings(), retry=RetryPolicy(total_seconds=30.0))
    content = os.urandom(MIB) * 40
    (tmp_path / "source").write_bytes(content)
    store.upload(tmp_path / "source", "s3://killable/file")
    killable.kill()
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(store.get, "s3://killable/file")
        downloading = pool.submit(store.download, "s3://killable/file", tmp_path / "target")
        killable.start()
        assert reading.result() == content
        downloading.result()
    assert (tmp_path / "target").read_bytes() == content


def test_an_outage_longer_than_the_time_limit_is_reported(killable: KillableStore) -> None:
    store: ObjectStore = ObjectStore.connect(killable.settings(), retry=RetryPolicy(total_seconds=1.0))
    store.put("s3://killable/file", bytes(MIB))
    killable.kill()
    with pytest.raises(StorageUnreachableError, match="does not answer") as caught:
        store.get("s3://killable/file")
    assert not isinstance(caught.value, Boto3Error)


@pytest.mark.parametrize(
    ("path_style", "url"),
    [(True, "http://s3.example.com:9000/bucket/a/key"), (False, "http://bucket.s3.example.com:9000/a/key")],
)
def test_the_bucket_is_in_the_path_or_in_the_host_name(
    monkeypatch: pytest.MonkeyPatch, path_style: bool, url: str
) -> None:
    """There is no such host: requests are sent to a proxy, which records them."""
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"here")

        def log_message(self, *_: object) -> None:
            """Requests are in `asked`."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        try:
            store = ObjectStore.connect(StorageSettings(endpoint="http://s3.example.com:9000", path_style=path_style))
            assert store.get("s3://bucket/a/key") == b"here"
        finally:
            server.shutdown()
    assert asked == [url]
