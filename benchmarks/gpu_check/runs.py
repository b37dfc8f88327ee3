"""Starts the fork server, an object store, and ranks: the parts of a pod, on this machine."""

import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.constants import Env, Stage
from finetune_api.progress import TerminationMessage
from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_trainer.memory import cpu_limit
from finetune_trainer.rank_main import read_result
from finetune_trainer.store import ObjectStore
from finetune_trainer.supervisor.forkclient import ForkClient, ForkServerProcess, RankProcess

from .cases import Case
from .prepared import BUCKET
from .ranks import HOOK, MEASURED
from .results import Budget, FailedCheckError
from .s3_server import s3_server

_KEYS = {
    "AWS_ACCESS_KEY_ID": "gpu-check",
    "AWS_SECRET_ACCESS_KEY": "gpu-check",
    "AWS_SESSION_TOKEN": "",
    "AWS_PROFILE": "default",
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
_SHOWN_LOG = 1500


@dataclass(frozen=True)
class Ready:
    """A prepared case."""

    case: Case
    config: TrainerConfig
    estimate_bytes: int
    """Of a process or, with GPUs, of its GPU, as `finetune plan` shows it."""
    allocated_bytes: int
    """What torch is estimated to allocate on the GPU."""
    context_bytes: int
    """The part of the estimate of a GPU that exists before torch allocates anything."""
    parameters: int
    matrices: int
    adapters: int


@dataclass(frozen=True)
class Attempt:
    """Result of a rank of the train stage."""

    exit_code: int
    message: TerminationMessage | None
    measured: dict[str, Any]
    """What the hooks have measured; empty if the training was not ended by them."""
    log: str

    def finished(self) -> TerminationMessage:
        """Return the message of a rank that has succeeded. Raises FailedCheckError with the end of its log."""
        if self.exit_code != 0 or self.message is None:
            raise FailedCheckError(f"the train stage ended with status {self.exit_code}: {self.log}")
        return self.message

    def found(self) -> dict[str, Any]:
        """Return the measurements. Raises FailedCheckError with the end of the log if there are none."""
        if not self.measured:
            raise FailedCheckError(f"the train stage ended with status {self.exit_code}: {self.log}")
        return self.measured


class Runs:
    """Ranks of one fork server, with one store."""

    def __init__(self, server: ForkServerProcess, endpoint: str, folder: Path, assets: Path, budget: Budget) -> None:
        self._server, self._endpoint, self.folder, self._assets = server, endpoint, folder, assets
        self.budget = budget
        self.store = ObjectStore.connect(StorageSettings(endpoint=endpoint, path_style=True))
        self._started = 0

    def call(self, function: str, limit: float = 120.0, **arguments: Any) -> Any:
        """Call `module:function` in a rank, and return its result, a JSON value."""
        scratch = self._scratch()
        (scratch / "call.json").write_text(json.dumps({"function": function, "arguments": arguments}))
        code = self._run(scratch, scratch, "gpu_check.ranks:call", _environment(), limit)
        if code != 0:
            raise FailedCheckError(f"{function} ended with status {code}: {_log(scratch)}")
        return json.loads((scratch / "result.json").read_text())

    def prepare(self, cases: Sequence[Case], *, gpu: bool) -> list[Ready]:
        """Make models, rows and configurations."""
        found = self.call(
            "gpu_check.prepared:prepare",
            cases=[case.as_json() for case in cases],
            assets=str(self._assets),
            folder=str(self.folder),
            endpoint=self._endpoint,
            gpu=gpu,
        )
        return [
            Ready(
                case,
                TrainerConfig.model_validate(entry["config"]),
                entry["estimateBytes"],
                entry["allocatedBytes"],
                entry["contextBytes"],
                entry["parameters"],
                entry["matrices"],
                entry["adapters"],
            )
            for case, entry in zip(cases, found, strict=True)
        ]

    def train(self, config: TrainerConfig, limit: float = 180.0, **hook: Any) -> Attempt:
        """Run an attempt of the train stage to its end. `hook`: see `ranks`."""
        scratch = self._scratch()
        (scratch / "config.json").write_text(config.model_dump_json())
        environment = _environment() | {
            HOOK: json.dumps(hook),
            Env.RANK: "0",
            Env.LOCAL_RANK: "0",
            Env.WORLD_SIZE: "1",
            Env.LOCAL_WORLD_SIZE: "1",
            Env.MASTER_ADDR: "127.0.0.1",
            Env.MASTER_PORT: str(_free_port()),
            Env.SCRATCH: str(scratch),
            Env.CACHE: str(self.folder / "cache"),
            Env.DS_ACCELERATOR: "cuda" if config.world.gpus else "cpu",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        code = self._run(scratch, scratch / "config.json", "gpu_check.ranks:train", environment, limit)
        path = scratch / MEASURED
        measured = json.loads(path.read_text()) if path.exists() else {}
        return Attempt(code, read_result(scratch, 0), measured, _log(scratch))

    def losses(self, config: TrainerConfig) -> list[float]:
        """Return the logged losses of a run."""
        log = self.store.get_json(config.layout.training_log)["log"]
        return [float(entry["loss"]) for entry in log if "loss" in entry]

    def _scratch(self) -> Path:
        self._started += 1
        scratch = self.folder / f"rank-{self._started}"
        scratch.mkdir()
        return scratch

    def _run(self, scratch: Path, argument: Path, target: str, environment: dict[str, str], limit: float) -> int:
        with (scratch / "log").open("wb") as output:
            rank = ForkClient(self._server.path).start_rank(environment, argument, output.fileno(), target=target)
        return _wait(rank, min(limit, self.budget.left))


def _wait(rank: RankProcess, seconds: float) -> int:
    try:
        return rank.wait(seconds)
    except TimeoutError as error:
        raise FailedCheckError(f"not done after {seconds:.0f} s") from error
    finally:
        rank.kill()


def _log(scratch: Path) -> str:
    return (scratch / "log").read_text(errors="replace")[-_SHOWN_LOG:]


def _environment() -> dict[str, str]:
    packages = Path(__file__).parents[1]
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = os.environ.get(Env.OMP_NUM_THREADS) or str(cpu_limit())
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false", Env.OMP_NUM_THREADS: threads}
    return os.environ | _KEYS | fixed


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def started_runs(folder: Path, assets: Path, budget: Budget, *, gpu: bool) -> Iterator[Runs]:
    """Start store and fork server; both end with the context."""
    config = folder / "aws-config"
    config.write_text("[default]\n")  # the user's profile must have no effect
    os.environ.update(_KEYS | {"AWS_CONFIG_FILE": str(config)})
    accelerator = "cuda" if gpu else "cpu"
    with s3_server(folder / "store") as endpoint, (folder / "server.log").open("wb") as output:
        server = ForkServerProcess.start(
            folder / "fork.sock", accelerator=accelerator, stage=Stage.TRAIN, env=_environment(), output=output
        )
        try:
            yield Runs(server, endpoint, folder, assets, budget)
        finally:
            server.stop()


__all__ = ["BUCKET", "Attempt", "Ready", "Runs", "started_runs"]
