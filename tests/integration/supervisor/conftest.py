"""One fork server for all tests of this folder, supervisors on demand, and a check that no process is left behind."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from finetune_api.constants import Env, Stage
from finetune_trainer.supervisor.forkclient import ForkServerProcess
from process_support import SUPPORT, Pod, base_environment, free_port, is_alive, make_config, until

CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServerProcess]:
    server = ForkServerProcess.start(tmp_path_factory.mktemp("server") / "fork.sock", env=base_environment())
    yield server
    server.stop()


@pytest.fixture
def start_pod(tmp_path: Path, fork_server: ForkServerProcess) -> Iterator[Callable[..., Pod]]:
    """start_pod(function, **options, **env) -> Pod: a supervisor whose ranks run `function`; stopped after the test."""
    pods: list[Pod] = []

    def start(
        function: str,
        *,
        stage: Stage = Stage.TRAIN,
        processes: int = 1,
        shared: bool = True,
        prefix: Sequence[str] = (),
        **env: str,
    ) -> Pod:
        scratch = tmp_path / f"pod-{len(pods)}"
        scratch.mkdir()
        config, log, port = scratch / "config.json", scratch / "log", free_port()
        config.write_text(make_config(stage, processes).model_dump_json())
        environ = base_environment() | {
            Env.SCRATCH: str(scratch),
            Env.TERMINATION_LOG: str(scratch / "termination.json"),
            Env.PROGRESS_PORT: str(port),
            Env.PROGRESS_HOST: "127.0.0.1",
        }
        if shared:
            environ[Env.FORK_SERVER] = str(fork_server.path)
        command = [*prefix, sys.executable, str(SUPPORT / "rank_targets.py"), stage, str(config), function]
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environ | env, stdout=output, stderr=subprocess.STDOUT)
        pods.append(Pod(process, scratch, port, log))
        return pods[-1]

    yield start
    for pod in pods:
        if pod.process.poll() is None:
            pod.process.send_signal(signal.SIGKILL)
            pod.process.wait()
    until(lambda: not any(is_alive(pid) for pod in pods for pid in pod.pids), within=10, what="all ranks have exited")


@pytest.fixture
def limited_memory(tmp_path: Path) -> Iterator[list[str]]:
    """A command prefix that runs a command with 1.5 GiB of memory, like the limit of a pod."""
    v1, name = CGROUPS / "memory", f"finetune-test-{tmp_path.name}"
    group = (v1 if v1.is_dir() else CGROUPS) / name
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if v1.is_dir() else "memory.max")
        limit.write_text(str(3 << 29))
    except OSError as error:
        pytest.skip(f"needs its own control group: {error}")
    yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    until(lambda: not (group / "cgroup.procs").read_text().split(), within=10, what="the control group is empty")
    group.rmdir()
