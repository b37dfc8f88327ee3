"""Copies of data blobs on the own host: what a restore reads before it asks storage.

    <cache>/checkpoints/<short digest of the run's address>/<digest of the blob>

An uploader writes them, from the snapshot, beside its uploads. They are a convenience and never the truth: which
checkpoints there are says storage alone, every file is verified as it is read, and whatever fails here is skipped with
one line in the log. So nothing waits for the disk either: no fsync, and a slow disk is left alone.
"""

import contextlib
import hashlib
import io
import logging
import math
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
_CHUNK = 1 << 20
"""Hashed while it still is in the processor's cache."""
_SLOW_SECONDS, _SLOW_BYTES_PER_SECOND = 2.0, 100e6
"""A disk that falls these seconds behind this rate is not worth it. Twice that of an upload which the training does not
feel (`saving.UNFELT_BYTES_PER_SECOND`), so that the upload can make up for the time."""
_ABANDONED_SECONDS = 24 * 3600.0


class HostCopies:
    """The copies of one run. Ranks of a host, each with an uploader of its own, share them: renames make that safe."""

    def __init__(self, folder: Path | None) -> None:
        """None: there are none, and none are made."""
        self._folder = folder
        self._lock = threading.Lock()
        """One writer at a time: the others send meanwhile, and the disk's seconds can be counted."""
        self._is_off = True
        """Nothing of this part is kept any more."""
        self._is_told = False
        """Why has been logged, and since then no part was kept whole."""
        self._part_bytes = 0
        self._seconds, self._written = 0.0, 0
        self._ends: deque[float] = deque(maxlen=3)
        """When this uploader's last parts were complete, oldest first; seconds since 1970."""

    @classmethod
    def of(cls, cache: Path | None, run_uri: str) -> "HostCopies":
        """Those of a run, in the host's cache folder; None: no such folder outlives the process."""
        if cache is None:
            return cls(None)
        return cls(cache / FOLDER / hashlib.sha256(run_uri.encode()).hexdigest()[:24])

    # Reading

    def read_into(self, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified bytes; False where there are none. A file with others is removed."""
        if self._folder is None:
            return False
        path = self._folder / digest
        try:
            with path.open("rb", buffering=0) as file:
                is_whole = os.fstat(file.fileno()).st_size == len(buffer) and _fill(file, buffer) == digest
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("%s cannot be read, storage is asked instead: %s", path, error.strerror)
            return False
        if not is_whole:
            log.warning("%s is damaged and removed, storage is asked instead", path)
            _remove(path)
        return is_whole

    # Writing, by an uploader

    def begin(self, part_bytes: int) -> None:
        """A part of so many bytes is about to be kept."""
        self._is_off, self._part_bytes, self._seconds, self._written = self._folder is None, part_bytes, 0.0, 0
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._ends:
                self._remove_abandoned()
        except OSError as error:
            self._skip(f"{self._folder} cannot be used: {error.strerror}")

    def keep(self, digest: str, data: bytes | memoryview) -> None:
        """Write a blob of the part, or note that it is still wanted. Any thread; never raises for the disk."""
        if self._folder is None:
            return
        with self._lock:
            if self._is_off:
                return
            try:
                self._keep(self._folder / digest, data)
            except OSError as error:
                self._skip(f"{self._folder} cannot be written: {error.strerror}")

    def _keep(self, path: Path, data: bytes | memoryview) -> None:
        started, now = time.monotonic(), time.time()
        if not _has_size(path, len(data)):
            if (free := shutil.disk_usage(path.parent).free) < 2 * self._part_bytes:
                self._skip(f"{free / 1e6:.1f} MB are free, less than twice the {self._part_bytes / 1e6:.1f} MB")
                return
            _write(path, data)
        # Not the file system's own clock, which lags behind the one that `end` reads.
        os.utime(path, (now, now))
        self._seconds += time.monotonic() - started
        self._written += len(data)
        if self._seconds > _SLOW_SECONDS + self._written / _SLOW_BYTES_PER_SECOND:
            self._skip(f"the disk takes only {self._written / self._seconds / 1e6:.1f} MB/s")

    def end(self) -> None:
        """The part is complete. What neither it nor the part before it has needed is removed.

        Ranks save together, and begin a save when the one before it is committed. So whatever any of them needed for
        this save or the last one is younger than this rank's last-but-one part. An uploader that is new does not know
        when that was, and removes nothing before its third.
        """
        self._ends.append(time.time())
        self._is_told = self._is_told and self._is_off
        if self._folder is None or len(self._ends) < 3:
            return
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if _modified(path) < self._ends[0]:
                    _remove(path)

    def remove(self) -> None:
        """All copies of the run: it needs none any more."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _skip(self, reason: str) -> None:
        self._is_off = True
        if not self._is_told:
            log.warning("the own host keeps no copy, or not a whole one, of this save: %s", reason)
        self._is_told = True

    def _remove_abandoned(self) -> None:
        """Folders of runs that have kept nothing for a day: they have ended, or gone elsewhere."""
        assert self._folder is not None
        for folder in self._folder.parent.iterdir():
            if folder != self._folder and _modified(folder) < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _fill(file: io.FileIO, buffer: memoryview) -> str:
    """Digest of the bytes read; empty where there are too few."""
    digest, filled = hashlib.sha256(), 0
    while filled < len(buffer):
        chunk = buffer[filled : filled + _CHUNK]
        count = file.readinto(chunk)
        if not count:
            return ""
        digest.update(chunk[:count])
        filled += count
    return digest.hexdigest()


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _modified(path: Path) -> float:
    """Seconds since 1970; never for what another rank has removed in the meantime."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _write(path: Path, data: bytes | memoryview) -> None:
    """Whole or not at all. Not synced: after a crash of the host the digest tells what is missing."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        _remove(Path(name))
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
