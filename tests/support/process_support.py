"""Real trainer processes for tests: configurations, environments, supervisors, and polling."""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.constants import Stage
from finetune_api.progress import TerminationMessage
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Spec
from finetune_operator.clusters.local_ports import free_ports

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
SPEC = {
    "model": {"uri": "s3://bucket/model"},
    "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
    "training": {"learningRate": 1e-3},
    "output": {"uri": "s3://bucket/out"},
}


def base_environment() -> dict[str, str]:
    """Our environment, with a PYTHONPATH for the packages and the ranks' functions. They use FINETUNE_TEST_THREADS
    threads, by default one."""
    paths = (ROOT / "operator", ROOT / "trainer", SUPPORT)
    threads = os.environ.get("FINETUNE_TEST_THREADS", "1")
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": threads}


def make_config(stage: Stage, processes: int) -> TrainerConfig:
    return TrainerConfig(
        job=JobRef(namespace="default", name="job", uid="u"),
        run=1,
        stage=stage,
        attempt=1,
        spec=Spec.model_validate(SPEC),
        storage=StorageSettings(),
        world=World(processes_per_node=processes),
        batch=BatchPlan(global_size=16, micro_size=8, accumulation=1),
    )


def free_port() -> int:
    return free_ports(1)[0]


def is_alive(pid: int) -> bool:
    """Whether the process is running; false for a zombie, which holds no resources."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter if it exits between open and read
        return False


def drop_capability_to_raise_priorities() -> None:
    """Drop CAP_SYS_NICE for this thread and its children (capset(2), version 3; PR_CAPBSET_DROP)."""
    capability, drop_from_bounding_set = 23, 24
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(drop_from_bounding_set, capability, 0, 0, 0) in (0, -1), "-1 without permission"
    assert libc.capget(header, data) == 0
    for index in range(3):
        data[index] &= ~(1 << capability)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def until(condition: Callable[[], Any], *, within: float, what: str) -> Any:
    """Poll, less often the longer it takes, and return the value of the condition as soon as it is true."""
    started = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - started
        assert waited < within, f"timed out after {within} s: {what}"
        time.sleep(min(0.2, max(0.01, waited / 10)))
    return value


@dataclass
class Pod:
    """A supervisor in its own process, as a container runtime starts it."""

    process: subprocess.Popen[bytes]
    scratch: Path
    port: int
    log: Path
    pids: list[int] = field(default_factory=list)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def waiting_pids(self, ranks: int) -> list[int]:
        """Process ids that `ranks` waiting ranks have printed."""

        def read() -> list[int] | None:
            found = [line.split("waiting ")[1].split() for line in self.lines() if "waiting " in line]
            return [int(pid) for pids in found for pid in pids] if len(found) == ranks else None

        self.pids = until(read, within=60, what=f"{ranks} waiting ranks")
        return self.pids

    def wait(self, within: float = 60) -> int:
        return self.process.wait(within)

    @property
    def message(self) -> TerminationMessage:
        found = TerminationMessage.decode((self.scratch / "termination.json").read_text())
        assert found is not None
        return found
