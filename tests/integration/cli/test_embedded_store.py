"""The embedded S3 server: persistence, access control and lifetime."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore, StoreInUseError, open_store, running_store
from finetune_cli.local.seaweed import EmbeddedStoreError, is_listening
from finetune_trainer.errors import AccessDeniedError, BadConfigError
from finetune_trainer.store import ObjectStore, RetryPolicy

OWNER = """
import sys, time
from pathlib import Path
from finetune_cli.local.embedded_store import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1])).start()
store.create_bucket("kept")
print(store.pid, flush=True)
time.sleep(600)
"""


def client(environ: dict[str, str], endpoint: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings = StorageSettings(endpoint=endpoint, path_style=True)
    return ObjectStore.connect(settings, retry=RetryPolicy(total_seconds=2.0, attempts_per_request=1))


def wait_until(holds: object, seconds: float = 20.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Return False also for a zombie process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_data_and_credentials_are_kept_after_the_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(tmp_path) as first:
        first.create_bucket("kept")
        first.create_bucket("kept")
        client(first.env(), first.endpoint, monkeypatch).put("s3://kept/a", b"content")
        keys = (first.access_key, first.secret_key)
    assert running_store(tmp_path) is None
    with EmbeddedStore(tmp_path) as second:
        assert (second.access_key, second.secret_key) == keys
        assert client(second.env(), second.endpoint, monkeypatch).get("s3://kept/a") == b"content"


def test_an_acknowledged_object_survives_a_killed_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(tmp_path) as server:
        server.create_bucket("kept")
        store = client(server.env(), server.endpoint, monkeypatch)
        for index in range(50):
            store.put(f"s3://kept/{index}", f"content {index}".encode() * 1000)
        os.kill(server.pid, signal.SIGKILL)
    with EmbeddedStore(tmp_path) as server:
        store = client(server.env(), server.endpoint, monkeypatch)
        assert [store.get(f"s3://kept/{index}")[:10] for index in (0, 49)] == [b"content 0c", b"content 49"]


def test_the_store_rejects_wrong_credentials_and_unknown_buckets(
    store_server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_server.create_bucket("secrets")
    wrong_secret = {**store_server.env(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    wrong_key = {**store_server.env(), "AWS_ACCESS_KEY_ID": "nobody"}
    for environ in (wrong_secret, wrong_key):
        with pytest.raises(AccessDeniedError):
            client(environ, store_server.endpoint, monkeypatch).get("s3://secrets/a")
    with pytest.raises(BadConfigError, match="no-such-bucket"):
        client(store_server.env(), store_server.endpoint, monkeypatch).put("s3://no-such-bucket/a", b"")


def test_the_aws_profile_of_the_user_has_no_effect(
    store_server: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:1\n")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another-account")
    store_server.create_bucket("profiles")
    store = client(store_server.env(), store_server.endpoint, monkeypatch)
    store.put("s3://profiles/a", b"content")
    assert store.get("s3://profiles/a") == b"content"


def test_the_server_ends_with_its_owner_and_the_next_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        with pytest.raises(StoreInUseError, match="another process is using the object store"):
            EmbeddedStore(tmp_path).start()
        with open_store(tmp_path) as access:
            assert access.buckets() == ["kept"]
        assert is_alive(pid), "a guest must not end the server"
        owner.kill()
    wait_until(lambda: not is_alive(pid))
    assert (tmp_path / "endpoint.json").exists(), "the killed owner could not tidy up"
    assert running_store(tmp_path) is None
    with open_store(tmp_path) as access:
        assert access.buckets() == ["kept"]
    assert not (tmp_path / "endpoint.json").exists()


def test_a_server_without_an_owner_is_terminated_before_the_next_one_starts(tmp_path: Path) -> None:
    stray = EmbeddedStore(tmp_path / "a")
    stray.start()
    record = tmp_path / "a" / "endpoint.json"
    saved = record.read_text()
    pid = stray.pid
    stray._watcher, watcher = None, stray._watcher  # an owner whose watcher was also killed
    assert watcher is not None
    watcher.kill()
    watcher.communicate()
    assert stray._lock is not None
    stray._lock.release()
    with EmbeddedStore(tmp_path / "a") as server:
        assert json.loads(saved)["pid"] == pid
        assert server.pid != pid
        assert stray._process is not None
        assert stray._process.wait(10) is not None


def test_a_stale_record_of_a_server_is_ignored(tmp_path: Path, store_server: EmbeddedStore) -> None:
    with EmbeddedStore(tmp_path) as server:
        record = json.loads((tmp_path / "endpoint.json").read_text())
        assert running_store(tmp_path) == server.access
    record["access"]["endpoint"] = store_server.endpoint  # another process uses the port now
    (tmp_path / "endpoint.json").write_text(json.dumps(record))
    assert running_store(tmp_path) is None
    (tmp_path / "endpoint.json").write_text("{")
    assert running_store(tmp_path) is None


def test_a_crashed_server_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path) as server:
        server.check()
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EmbeddedStoreError, match=r"exited unexpectedly with status -9; end of .*server\.log:\n"):
            wait_until(lambda: server.check() is not None)


def test_a_server_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "s3.json").write_text(
        '{"identities": [{"name": "x", "credentials": [{"accessKey": "a", "secretKey": 1}]}]}'
    )
    with pytest.raises(EmbeddedStoreError, match=r"failed to start; end of .*server\.log:\n"):
        EmbeddedStore(tmp_path).start()


def test_no_sockets_processes_or_ports_remain(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path).start()
    pid, port = server.pid, server.access.port
    sockets = server._ports.unix_sockets() if server._ports else []
    assert any(path.exists() for path in sockets)
    server.stop()
    server.stop()
    assert not is_alive(pid)
    assert not is_listening(port)
    assert not any(path.exists() for path in sockets)
