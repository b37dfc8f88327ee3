"""Measure restores from S3 and from the node-local cache, compared with plain downloads of the same bytes.

Collective: all ranks read their parts at the same time.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.checkpoint.format.layout import blob_sizes
from finetune_trainer.checkpoint.manager import CheckpointManager
from finetune_trainer.checkpoint.stored.loading import Loader
from finetune_trainer.checkpoint.stored.node_local_cache import NodeLocalCache
from finetune_trainer.checkpoint.stored.run_storage import RunStorage
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore, join

from .plain_s3 import client, download
from .training_job import BUCKET


def restore_rounds(engine: Any, config: TrainerConfig, rounds: int) -> dict[str, list[float]]:
    """Return the seconds until the last rank is done, with alternating sides. The first round opens connections."""
    runtime, store = RuntimeEnv.from_environ(os.environ), ObjectStore.connect(config.storage)
    assert config.storage.endpoint is not None
    s3, (storage, digests) = client(config.storage.endpoint), _own_part(store, config, runtime)
    folder = join(config.run_uri, "checkpoints", "blobs").removeprefix(f"s3://{BUCKET}/")
    sizes = {f"{folder}/{digest}": size for digest, size in digests.items()}

    def restore(cache: Path | None, prefix: str) -> None:
        # A new manager allocates new memory, as after a restart.
        manager = CheckpointManager(store, config, runtime, cache=cache)
        restored = manager.restore(engine)
        assert restored is not None
        assert restored.origin.startswith(prefix)
        manager.close()

    cache = _kept_on_host(storage, digests, config, runtime)
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: restore(None, "storage"),
        "raw": lambda: download(s3, BUCKET, sizes),
        "host": lambda: restore(cache, "node-local cache"),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in sorted(sides, reverse=bool(number % 2)):
            found[side].append(_seconds(sides[side]))
    return found


def _own_part(store: ObjectStore, config: TrainerConfig, runtime: RuntimeEnv) -> tuple[RunStorage, dict[str, int]]:
    """Return the storage of the run, and digests and sizes of this rank's blobs in the newest checkpoint."""
    storage = RunStorage.of(store, config.run_uri, attempt=config.attempt)
    manifest, _ = storage.catalog.newest_complete(())
    assert manifest is not None
    part = Loader(storage.blobs, manifest).part(runtime.rank)
    return storage, dict(zip(part.blobs, blob_sizes(part.bytes, manifest.blob_bytes), strict=True))


def _kept_on_host(storage: RunStorage, sizes: dict[str, int], config: TrainerConfig, runtime: RuntimeEnv) -> Path:
    """Create a cache folder with the copies that the uploader of this rank would write, still in the page cache."""
    cache = runtime.scratch / "own-host"
    copies = NodeLocalCache.of(cache, config.run_uri)
    copies.start_part(sum(sizes.values()))
    for digest in sizes:
        copies.add(digest, storage.blobs.get(digest))
    copies.finish_part()
    return cache


def _seconds(action: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started
