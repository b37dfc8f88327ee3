"""The node-local cache: verified, bounded, and never the cause of a failure."""

import hashlib
import os
import resource
import time
from pathlib import Path

import pytest

from finetune_trainer.checkpoint.stored.node_local_cache import FOLDER, NodeLocalCache

RUN = "s3://bucket/out/runs/r0001-1"
DATA = os.urandom(3 << 20)
SKIPPED = "this save is not or only partly in the node-local cache"


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def save(copies: NodeLocalCache, *blobs: bytes) -> None:
    copies.start_part(sum(map(len, blobs)))
    for blob in blobs:
        copies.add(digest_of(blob), blob)
    copies.finish_part()


def read(copies: NodeLocalCache, data: bytes) -> bytes | None:
    buffer = bytearray(len(data))
    return bytes(buffer) if copies.read_into(digest_of(data), memoryview(buffer)) else None


def files(cache: Path) -> set[str]:
    return {path.name for path in cache.glob(f"{FOLDER}/*/*")}


def test_cached_bytes_are_read_back(tmp_path: Path) -> None:
    save(NodeLocalCache.of(tmp_path, RUN), DATA, b"x")
    assert read(NodeLocalCache.of(tmp_path, RUN), DATA) == DATA
    assert files(tmp_path) == {digest_of(DATA), digest_of(b"x")}


def test_another_run_does_not_see_them(tmp_path: Path) -> None:
    save(NodeLocalCache.of(tmp_path, RUN), DATA)
    assert read(NodeLocalCache.of(tmp_path, RUN + "0"), DATA) is None


def test_without_a_folder_nothing_is_cached(caplog: pytest.LogCaptureFixture) -> None:
    copies = NodeLocalCache.of(None, RUN)
    save(copies, DATA)
    copies.remove()
    assert read(copies, DATA) is None
    assert caplog.messages == []


@pytest.mark.parametrize("damage", ["other bytes", "cut short", "too long", "empty"])
def test_a_damaged_file_is_removed_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    copies = NodeLocalCache.of(tmp_path, RUN)
    save(copies, DATA)
    [path] = tmp_path.glob(f"{FOLDER}/*/*")
    path.write_bytes(
        {"other bytes": DATA[:-1] + bytes([DATA[-1] ^ 1]), "cut short": DATA[:-1], "too long": DATA + b"x"}.get(
            damage, b""
        )
    )
    assert read(copies, DATA) is None
    assert not path.exists()
    assert caplog.messages == [f"{path} is damaged and was removed; reading from storage instead"]
    save(copies, DATA)
    assert read(copies, DATA) == DATA


def test_blobs_that_two_saves_do_not_use_are_removed_by_the_third(tmp_path: Path) -> None:
    copies = NodeLocalCache.of(tmp_path, RUN)
    for number in range(6):
        save(copies, b"same", b"%d" % number)
        newest = range(max(0, number - 1), number + 1)
        assert files(tmp_path) == {digest_of(blob) for blob in (b"same", *(b"%d" % each for each in newest))}


def test_ranks_of_a_host_keep_what_others_need(tmp_path: Path) -> None:
    ranks = [NodeLocalCache.of(tmp_path, RUN) for _ in range(3)]
    for step in range(5):
        for number in (0, 1, 2) if step % 2 else (2, 0, 1):
            save(ranks[number], b"%d of %d" % (step, number))
        kept = files(tmp_path)
        wanted = {digest_of(b"%d of %d" % (at, number)) for at in (step - 1, step) for number in range(3) if at >= 0}
        assert wanted <= kept
        # What another rank stored after this one had finished is kept for one more save.
        assert len(kept) <= len(wanted) + 3


def test_a_full_disk_only_disables_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file-size limit of the process simulates the full disk; the kernel rejects the write at the same place."""
    copies = NodeLocalCache.of(tmp_path, RUN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        save(copies, b"small", DATA, b"later")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    [reported] = caplog.messages
    assert reported.startswith(f"{SKIPPED}: {tmp_path}")
    assert "cannot be written: File too large" in reported
    assert files(tmp_path) == {digest_of(b"small")}
    save(copies, DATA)
    assert read(copies, DATA) == DATA


def test_a_disk_that_stays_full_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    copies, good = NodeLocalCache.of(tmp_path / "file", RUN), NodeLocalCache.of(tmp_path, RUN)
    for _ in range(3):
        save(copies, DATA)
        save(good, DATA)
    assert len(caplog.messages) == 1


def test_a_disk_with_little_space_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    free = os.statvfs(tmp_path)
    copies = NodeLocalCache.of(tmp_path, RUN)
    copies.start_part(free.f_bavail * free.f_frsize * 3 // 4)
    for blob in (DATA, b"x"):
        copies.add(digest_of(blob), blob)
    copies.finish_part()
    [reported] = caplog.messages
    assert "MB are free, less than twice the" in reported
    assert files(tmp_path) == set()


def test_a_folder_that_cannot_be_created_only_disables_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    copies = NodeLocalCache.of(tmp_path / "file", RUN)
    save(copies, DATA)
    assert read(copies, DATA) is None
    assert [message for message in caplog.messages if message.startswith(SKIPPED)] == caplog.messages[:1]


def test_caches_of_ended_runs_are_removed_after_a_day(tmp_path: Path) -> None:
    for run, age in (("old", 25 * 3600), ("young", 23 * 3600)):
        save(NodeLocalCache.of(tmp_path, run), run.encode())
        folder = next(path.parent for path in tmp_path.glob(f"{FOLDER}/*/{digest_of(run.encode())}"))
        os.utime(folder, (time.time() - age,) * 2)
    save(NodeLocalCache.of(tmp_path, RUN), DATA)
    assert files(tmp_path) == {digest_of(b"young"), digest_of(DATA)}


def test_a_successful_run_removes_its_cache(tmp_path: Path) -> None:
    save(NodeLocalCache.of(tmp_path, RUN), DATA)
    save(NodeLocalCache.of(tmp_path, "other"), b"other")
    NodeLocalCache.of(tmp_path, RUN).remove()
    assert files(tmp_path) == {digest_of(b"other")}
