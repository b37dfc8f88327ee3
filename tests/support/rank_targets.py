"""Functions that ranks run in tests, and a supervisor that runs them: `python rank_targets.py STAGE CONFIG FUNCTION`.

Each function replaces `finetune_trainer.rank_main:run_rank`; processes, fork server and signals are
real.
"""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

RANK = int(os.environ.get("RANK", "-1"))


def succeed(_config: Path) -> int:
    print("done")
    return 0


def show_environment(config: Path) -> int:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "MARK")
    print(*(f"{name}={os.environ.get(name)}" for name in names), f"config={config.name}", f"cwd={Path.cwd()}")
    return 0


def show_torch(_config: Path) -> int:
    """State of a forked rank: libraries loaded, CUDA not initialized, its own thread count, DeepSpeed's kernel off."""
    torch, ops = sys.modules["torch"], sys.modules["deepspeed"].ops
    loaded = all(name in sys.modules for name in ("transformers", "peft", "accelerate", "boto3"))
    kernel = ops.__compatible_ops__["deepspeed_shm_comm"]
    print(f"loaded={loaded} cuda={torch.cuda.is_initialized()} threads={torch.get_num_threads()} kernel={kernel}")
    return 0


def print_secrets(_config: Path) -> int:
    """Random numbers that must differ between two ranks that did not seed anything."""
    import random

    import numpy as np

    print(random.random(), np.random.rand())
    return 0


def all_reduce(_config: Path) -> int:
    """A gloo process group: 1 + 2 + ... over the ranks; the baseline for torchrun."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.full((4,), float(dist.get_rank() + 1))
    dist.all_reduce(total)
    # A parallel region like in every training step: a thread pool broken by the fork would hang here.
    product = torch.ones(512, 512) @ torch.ones(512, 512)
    print(f"sum={total[0].item():g} product={product[0, 0].item():g}")
    dist.destroy_process_group()
    return 0


def gather_both_ways(_config: Path) -> int:
    """Compare gather by broadcast with gloo's gather: the same bytes for every kind of call that DeepSpeed makes."""
    import torch
    import torch.distributed as dist

    from finetune_trainer.train.gloo import all_gather_by_broadcast

    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    flags = (False, True)
    cases = list(itertools.product((torch.float32, torch.bfloat16, torch.int64), (1, 7, 4096), flags, flags))
    for dtype, size, in_place, async_op in cases:
        mine = (torch.arange(size) + 1000 * rank).to(dtype)
        expected, output = torch.empty(world * size, dtype=dtype), torch.full((world * size,), -1, dtype=dtype)
        dist.all_gather_into_tensor(expected, mine)
        piece = output.chunk(world)[rank].copy_(mine) if in_place else mine
        works = all_gather_by_broadcast(output, piece, async_op=async_op)
        if works is not None:
            works.wait()
            assert works.is_completed()
        assert torch.equal(output, expected), (dtype, size, in_place, async_op)
    print(f"gathered {len(cases)} times")
    dist.destroy_process_group()
    return 0


def exit_with_rank(_config: Path) -> int:
    return RANK


def raise_value_error(_config: Path) -> int:
    raise ValueError("a target that raises")


def write_damaged_result(_config: Path) -> int:
    (Path(os.environ["FINETUNE_SCRATCH"]) / "result-0.json").write_text("{")
    return 0


def fail_with_damaged_result(config: Path) -> int:
    write_damaged_result(config)
    return 77


def wait_forever(_config: Path) -> NoReturn:
    """Print its process id and that of a child in its process group, then hang and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    child = subprocess.Popen(["sleep", "1000"])
    print(f"waiting {os.getpid()} {child.pid}")
    while True:
        time.sleep(1000)


def stop_on_sigterm(_config: Path) -> int:
    """A minimal training loop: stops between two steps, with the exit code for `state saved`."""
    from finetune_trainer.stop import install_stop_flag

    flag = install_stop_flag()
    print(f"waiting {os.getpid()}")
    while not flag.requested:
        signal.sigtimedwait([], 0.01)
    print("stopped after the step")
    return 75


def use_up_memory(_config: Path) -> int:
    """Allocate up to 3 GiB, page by page, until the kernel kills the process."""
    held = []
    for _ in range(48):
        held.append(bytearray(b"x" * (64 << 20)))
    return len(held)


def bad_data(config: Path) -> int:
    """Rank 1 cannot read a record; rank 0 waits for it in a collective that never completes."""
    from finetune_trainer.errors import BadDataError
    from finetune_trainer.rank_main import run_bound

    def read() -> NoReturn:
        if RANK == 0:
            wait_forever(config)
        raise BadDataError("train.jsonl, line 7: no column 'text'", advice="name the column in spec.data.columns.text")

    return run_bound(config, lambda *_: read)


def evaluated(config: Path) -> int:
    from finetune_api.progress import EvaluateResult
    from finetune_trainer.rank_main import run_bound

    return run_bound(config, lambda *_: lambda: EvaluateResult(report_uri="s3://bucket/report.html"))


def evaluate_forever(config: Path) -> int:
    from finetune_trainer.rank_main import run_bound

    def wait() -> NoReturn:
        print(f"waiting {os.getpid()}")
        while True:
            time.sleep(1000)

    return run_bound(config, lambda *_: wait)


def list_own_processes(config: Path) -> int:
    """Prints its session, and name, session, number of threads and signals of every child."""
    from finetune_trainer.rank_main import run_bound

    def field(status: str, name: str) -> str:
        return next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))

    def settled(folder: Path) -> str:
        """A forked child has the name of this process until it has run, which can take a while on a busy machine."""
        own, until = field(Path("/proc/self/status").read_text(), "Name"), time.monotonic() + 10
        while True:
            status = (folder / "status").read_text()
            is_new = field(status, "PPid") == str(os.getpid()) and field(status, "Name") == own
            if not is_new or time.monotonic() > until:
                return status
            time.sleep(0.01)

    def show() -> None:
        print(f"session {os.getsid(0)}")
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = settled(folder)
            except OSError:
                continue  # it has just ended
            if field(status, "PPid") == str(os.getpid()):
                blocked = int(field(status, "SigBlk"), 16) | int(field(status, "SigIgn"), 16)
                heeds = not blocked >> (signal.SIGTERM - 1) & 1
                shown = (field(status, "Name"), os.getsid(int(folder.name)), field(status, "Threads"), heeds)
                print("child", *shown)

    return run_bound(config, lambda *_: show)  # type: ignore[arg-type]


def report_progress(config: Path) -> int:
    """Report three steps of progress, then run until stopped, and save."""
    from finetune_api.progress import CommittedCheckpoint
    from finetune_trainer.rank_main import run_bound
    from finetune_trainer.stop import install_stop_flag

    def bind(_config: object, _runtime: object, report: object) -> object:
        flag = install_stop_flag()

        def loop() -> NoReturn:
            from finetune_trainer.errors import StoppedError

            report.update(step=3, total_steps=10, loss=0.5, flush=True)  # type: ignore[attr-defined]
            while not flag.requested:
                signal.sigtimedwait([], 0.01)
            saved = CommittedCheckpoint(step=3, uri="s3://bucket/3", time="2026-01-01T00:00:00Z", save_seconds=0.1)
            report.update(last_checkpoint=saved, flush=True)  # type: ignore[attr-defined]
            raise StoppedError("stopped at step 3")

        return loop

    return run_bound(config, bind)  # type: ignore[arg-type]


def main() -> int:
    from finetune_api.constants import Stage
    from finetune_trainer.supervisor.supervisor import Options, supervise

    stage, config, function = sys.argv[1:]
    target = f"rank_targets:{function}"
    return supervise(
        Options(Stage(stage), Path(config), os.environ, target=target, grace_seconds=1.0, final_read_seconds=2.0)
    )


if __name__ == "__main__":
    # Ranks import this file by its module name, so a file that was run as a script must also be that module.
    if len(sys.argv) == 2:
        sys.exit(globals()[sys.argv[1]](Path("config.json")))
    sys.exit(main())
