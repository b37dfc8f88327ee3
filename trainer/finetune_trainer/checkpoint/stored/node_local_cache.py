"""Node-local cache: copies of data blobs on the host, which a restore reads before it reads storage.

    <cache>/checkpoints/<short digest of the run's address>/<digest of the blob>

An uploader writes them from the snapshot during its upload. They are only an optimization: storage alone defines which
checkpoints exist, every file is verified when it is read, and a failure of the cache only logs a warning. Therefore
writes are not synced, and a slow disk is not used.
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
"""Small enough to be hashed while it is in the processor's cache."""
_SLOW_SECONDS, _SLOW_BYTES_PER_SECOND = 2.0, 100e6
"""A disk that falls behind this rate by this many seconds is not used. The rate is twice that of an upload
(`async_saver.UPLOAD_BYTES_PER_SECOND`), so that the upload can catch up."""
_ABANDONED_SECONDS = 24 * 3600.0


class NodeLocalCache:
    """The cache of one run, shared by the uploaders of all ranks of a host: files appear by atomic renames."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: None disables the cache."""
        self._folder = folder
        self._lock = threading.Lock()
        """One writer at a time: other threads upload in the meantime, and the time of the disk can be measured."""
        self._is_off = True
        """Nothing more of this part is written."""
        self._is_logged = False
        """Whether the reason was logged, and no part was written completely since."""
        self._part_bytes = 0
        self._seconds, self._written = 0.0, 0
        self._ends: deque[float] = deque(maxlen=3)
        """When this uploader finished its last parts, oldest first; Unix time in seconds."""

    @classmethod
    def of(cls, cache: Path | None, run_uri: str) -> "NodeLocalCache":
        """The cache of a run in the cache folder of the host; None: no folder outlives the process."""
        if cache is None:
            return cls(None)
        return cls(cache / FOLDER / hashlib.sha256(run_uri.encode()).hexdigest()[:24])

    # Reading

    def read_into(self, digest: str, buffer: memoryview) -> bool:
        """Fill `buffer` with the verified bytes; False if there are none. A damaged file is removed."""
        if self._folder is None:
            return False
        path = self._folder / digest
        try:
            with path.open("rb", buffering=0) as file:
                is_whole = os.fstat(file.fileno()).st_size == len(buffer) and _fill(file, buffer) == digest
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("%s cannot be read; reading from storage instead: %s", path, error.strerror)
            return False
        if not is_whole:
            log.warning("%s is damaged and was removed; reading from storage instead", path)
            _remove(path)
        return is_whole

    # Writing, by an uploader

    def start_part(self, part_bytes: int) -> None:
        """Start a part of `part_bytes` bytes."""
        self._is_off, self._part_bytes, self._seconds, self._written = self._folder is None, part_bytes, 0.0, 0
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._ends:
                self._remove_abandoned()
        except OSError as error:
            self._skip(f"{self._folder} cannot be used: {error.strerror}")

    def add(self, digest: str, data: bytes | memoryview) -> None:
        """Write a blob of the part, or mark it as used. Thread-safe; never raises a disk error."""
        if self._folder is None:
            return
        with self._lock:
            if self._is_off:
                return
            try:
                self._add(self._folder / digest, data)
            except OSError as error:
                self._skip(f"{self._folder} cannot be written: {error.strerror}")

    def _add(self, path: Path, data: bytes | memoryview) -> None:
        started, now = time.monotonic(), time.time()
        if not _has_size(path, len(data)):
            if (free := shutil.disk_usage(path.parent).free) < 2 * self._part_bytes:
                self._skip(f"{free / 1e6:.1f} MB are free, less than twice the {self._part_bytes / 1e6:.1f} MB")
                return
            _write(path, data)
        # Not the file system's clock, which lags behind the one that `finish_part` reads.
        os.utime(path, (now, now))
        self._seconds += time.monotonic() - started
        self._written += len(data)
        if self._seconds > _SLOW_SECONDS + self._written / _SLOW_BYTES_PER_SECOND:
            self._skip(f"the disk writes only {self._written / self._seconds / 1e6:.1f} MB/s")

    def finish_part(self) -> None:
        """Finish the part: remove the blobs that neither it nor the previous part used.

        Ranks save together, and start a save when the previous one is committed. Therefore the blobs that any rank used
        for this save or the previous one are newer than this rank's second-to-last part. A new uploader does not know
        that time, and removes nothing before its third part.
        """
        self._ends.append(time.time())
        self._is_logged = self._is_logged and self._is_off
        if self._folder is None or len(self._ends) < 3:
            return
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if _modified(path) < self._ends[0]:
                    _remove(path)

    def remove(self) -> None:
        """Remove the cache of the run, which is no longer needed."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _skip(self, reason: str) -> None:
        self._is_off = True
        if not self._is_logged:
            log.warning("this save is not or only partly in the node-local cache: %s", reason)
        self._is_logged = True

    def _remove_abandoned(self) -> None:
        """Remove the caches of runs that have written nothing for a day: they have ended or moved to other hosts."""
        assert self._folder is not None
        for folder in self._folder.parent.iterdir():
            if folder != self._folder and _modified(folder) < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _fill(file: io.FileIO, buffer: memoryview) -> str:
    """Fill the buffer. Returns the digest of the bytes; empty if the file is too short."""
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
    """Modification time as Unix time; infinite if another rank removed the file in the meantime."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def _write(path: Path, data: bytes | memoryview) -> None:
    """Write atomically. Not synced: after a crash of the host, the digest detects missing bytes."""
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
