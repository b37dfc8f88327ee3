"""Plain boto3 as the baseline: upload files, download into memory in parallel, measure the rate of a link."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.checkpoint.stored.blobs import THREADS

_READ_BYTES = 1 << 20
_TOLERANCE = 1.1
_PROBE_OBJECTS, _PROBE_BYTES = 4, 64 << 20


def client(endpoint: str) -> Any:
    """Return a client without checksums and body signatures, like ours. Over TLS, boto3 does not sign bodies either."""
    import boto3
    from botocore.config import Config

    config = Config(
        s3={"addressing_style": "path", "payload_signing_enabled": False},
        max_pool_connections=64,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", endpoint_url=endpoint, config=config)


def upload_folder(s3: Any, folder: Path, bucket: str, prefix: str) -> int:
    """Upload all files of a folder, several at once and in parallel parts (boto3's default). Return their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(THREADS) as pool:
        done = [
            pool.submit(s3.upload_file, str(path), bucket, f"{prefix}/{path.relative_to(folder)}") for path in files
        ]
        for each in done:
            each.result()
    return sum(path.stat().st_size for path in files)


def download(s3: Any, bucket: str, sizes: dict[str, int]) -> float:
    """Return the seconds to read objects (key -> bytes) into memory, unverified, with the concurrency of our reads."""
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(_read, s3, bucket, key, size) for key, size in sizes.items()]:
            each.result()
    return time.perf_counter() - started


def _read(s3: Any, bucket: str, key: str, size: int) -> None:
    view, filled = np.empty(size, dtype=np.uint8).data, 0
    body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    while filled < size:
        count = body.readinto(view[filled : filled + _READ_BYTES])
        assert count, f"{key} ended after {filled} of {size} bytes"
        filled += count


@dataclass(frozen=True)
class Rates:
    """Rates of plain transfers in MB/s, 1 MB = 1e6 bytes."""

    up: float
    down: float

    def __str__(self) -> str:
        return f"{self.up:.0f} up, {self.down:.0f} down"

    def against(self, cap: float) -> str:
        """Return the rates as text. Raises ValueError if they exceed the limit `cap` of the link."""
        if max(self.up, self.down) > _TOLERANCE * cap:
            raise ValueError(f"the link must be limited to {cap:g} MB/s, but has {self}")
        filled = min(self.up, self.down) * _TOLERANCE >= cap
        return f"{self}" if filled else f"{self} (limited by this machine)"


def measured_rates(endpoint: str, bucket: str) -> Rates:
    """Put and get four objects of 64 MiB concurrently, and remove them."""
    s3, content = client(endpoint), os.urandom(_PROBE_BYTES)
    keys = {f"probe-{number}": _PROBE_BYTES for number in range(_PROBE_OBJECTS)}
    s3.head_bucket(Bucket=bucket)  # connections and imports must not be part of the measurement
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        for each in [pool.submit(s3.put_object, Bucket=bucket, Key=key, Body=content) for key in keys]:
            each.result()
    up, down = time.perf_counter() - started, download(s3, bucket, keys)
    for key in keys:
        s3.delete_object(Bucket=bucket, Key=key)
    total = sum(keys.values()) / 1e6
    return Rates(total / up, total / down)
