"""Benchmark the all-gather of ZeRO on the CPU: that of gloo against one broadcast per rank, alternately."""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from finetune_trainer.train.gloo import all_gather_by_broadcast

SIZES = (22_700_000, 1_000_000, 10_000)
"""Numbers of elements: all of all-MiniLM-L6-v2, a large layer, a small layer."""
REPEATS = 7


def main() -> None:
    """Print a table and a JSON object with median milliseconds, and the ratio of gloo to ours."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(port, results), nprocs=2)
    rows = results.get()
    print(f"{'elements':>12} {'gloo ms':>10} {'ours ms':>10} {'ratio':>7}")
    for row in rows:
        print(f"{row['elements']:>12,} {row['glooMs']:>10.2f} {row['oursMs']:>10.2f} {row['ratio']:>7.2f}")
    print(json.dumps({"allGather": rows}))


def _rank(rank: int, port: int, results: "mp.SimpleQueue") -> None:  # type: ignore[type-arg]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = []
    for elements in SIZES:
        whole, part = torch.empty(elements), torch.full((elements // 2,), float(rank))
        times: dict[str, list[float]] = {"gloo": [], "ours": []}
        for _ in range(REPEATS):
            times["gloo"].append(_seconds(lambda: dist.all_gather_into_tensor(whole, part)))  # noqa: B023
            times["ours"].append(_seconds(lambda: all_gather_by_broadcast(whole, part)))  # noqa: B023
        gloo, ours = (1000 * statistics.median(times[name]) for name in ("gloo", "ours"))
        rows.append({"elements": elements, "glooMs": gloo, "oursMs": ours, "ratio": gloo / ours})
    if rank == 0:
        results.put(rows)
    dist.destroy_process_group()


def _seconds(collective: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    collective()
    dist.barrier()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
