import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_trainer.supervisor.forkclient import ForkClient, ForkServerProcess, RankProcess
from finetune_trainer.supervisor.forkserver import short_address
from process_support import base_environment, free_port, is_alive, until

Start = Callable[..., tuple[RankProcess, Path]]


@pytest.fixture
def start(fork_server: ForkServerProcess, tmp_path: Path) -> Iterator[Start]:
    """start(function, **env) -> (rank, file with its output)."""
    ranks: list[RankProcess] = []

    def start_rank(function: str, *, server: ForkServerProcess = fork_server, **env: str) -> tuple[RankProcess, Path]:
        output = tmp_path / f"rank-{len(ranks)}.log"
        with output.open("wb") as file:
            rank = ForkClient(server.path).start_rank(
                base_environment() | env,
                tmp_path / "config.json",
                file.fileno(),
                target=f"rank_targets:{function}",
                cwd=tmp_path,
            )
        ranks.append(rank)
        return rank, output

    yield start_rank
    for rank in ranks:
        rank.kill()


def waiting_pids(output: Path) -> list[int]:
    words = until(lambda: output.read_text().split(), within=60, what="the rank waits")
    return [int(word) for word in words[1:]]


def test_requests_during_the_import_are_answered_and_sigterm_ends_the_server(start: Start, tmp_path: Path) -> None:
    server = ForkServerProcess.start(tmp_path / "fork.sock", env=base_environment())
    try:
        rank, output = start("succeed", server=server)
        assert rank.poll() is None
        assert rank.pid is None
        assert rank.wait(60) == 0
        assert output.read_text() == "done\n"
        waiting, output = start("wait_forever", server=server)
        pids = waiting_pids(output)
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert waiting.wait(10) == -9
        until(lambda: not any(map(is_alive, pids)), within=10, what="the rank and its child have exited")
    finally:
        server.stop()


def test_a_rank_gets_its_own_environment_folder_and_argument(start: Start, tmp_path: Path) -> None:
    env = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "host",
        "MARK": "x",
    }
    rank, output = start("show_environment", **env)
    assert rank.wait(60) == 0
    shown = dict(word.split("=", 1) for word in output.read_text().split())
    assert shown == env | {"OMP_NUM_THREADS": "1", "config": "config.json", "cwd": str(tmp_path)}


def test_a_rank_finds_the_libraries_loaded_and_cuda_uninitialized(start: Start) -> None:
    rank, output = start("show_torch", OMP_NUM_THREADS="2")
    assert rank.wait(60) == 0
    assert output.read_text() == "loaded=True cuda=False threads=2 kernel=False\n"


def test_ranks_have_the_threads_that_the_tests_run_with(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise `make test-processors` would train with one thread both times."""
    monkeypatch.setenv("FINETUNE_TEST_THREADS", "2")
    rank, output = start("show_torch")
    assert rank.wait(60) == 0
    assert " threads=2 " in output.read_text()


def test_two_ranks_draw_different_random_numbers(start: Start) -> None:
    ranks = [start("print_secrets") for _ in range(2)]
    assert [rank.wait(60) for rank, _ in ranks] == [0, 0]
    first, second = (output.read_text().split() for _, output in ranks)
    assert first[0] != second[0]
    assert first[1] != second[1]


@pytest.mark.parametrize(("function", "code"), [("exit_with_rank", 65), ("raise_value_error", 79), ("missing", 79)])
def test_the_exit_code_is_reported(start: Start, function: str, code: int) -> None:
    rank, output = start(function, RANK="65")
    assert rank.wait(60) == code
    assert ("Traceback" in output.read_text()) == (code == 79)


def test_a_signal_is_reported_as_a_negative_number(start: Start) -> None:
    rank, output = start("wait_forever")
    pids = waiting_pids(output)
    os.kill(pids[0], signal.SIGKILL)
    assert rank.wait(10) == -9
    until(lambda: not any(map(is_alive, pids)), within=10, what="the rank's child has also exited")


def test_signals_are_forwarded(start: Start) -> None:
    rank, output = start("stop_on_sigterm")
    waiting_pids(output)
    rank.send_signal(signal.SIGTERM)
    assert rank.wait(10) == 75


def test_a_sigterm_before_the_fork_is_not_lost_and_kills_nothing(start: Start) -> None:
    rank, output = start("stop_on_sigterm")
    rank.send_signal(signal.SIGTERM)
    assert rank.wait(20) == 75
    assert "stopped after the step" in output.read_text()


def test_the_rank_of_a_client_that_disconnects_is_killed(start: Start) -> None:
    rank, output = start("wait_forever")
    pids = waiting_pids(output)
    rank.kill()
    until(lambda: not any(map(is_alive, pids)), within=10, what="rank and child have exited")


@pytest.mark.parametrize(
    "request_line",
    [b"no json\n", b"{}\n", b'{"env": {"A": 1}, "cwd": "/", "target": "a:b", "argument": ""}\n', b"[]\n"],
)
def test_an_invalid_request_gets_an_error_and_the_server_continues(
    fork_server: ForkServerProcess, start: Start, request_line: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client, short_address(fork_server.path) as address:
        client.settimeout(60)
        client.connect(address)
        socket.send_fds(client, [request_line], [1])
        assert "invalid request" in json.loads(client.recv(4096))["error"]
    assert start("succeed")[0].wait(60) == 0


def test_a_client_reports_a_missing_server(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"no fork server is listening at .*nobody\.sock"):
        ForkClient(tmp_path / "nobody.sock").start_rank({}, "config.json", 1)


def test_a_server_that_cannot_import_reports_the_reason(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('this torch is broken')")
    env = base_environment()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    with (tmp_path / "log").open("wb") as log:
        server = ForkServerProcess.start(tmp_path / "fork.sock", env=env, output=log)
    try:
        rank = ForkClient(server.path).start_rank(env, "config.json", 1)
        assert rank.wait(60) == 70
        assert rank.error == "the fork server ended"
        assert server.process.wait(10) == 1
        assert "this torch is broken" in (tmp_path / "log").read_text()
    finally:
        server.stop()


_IMPORTS = """
import sys
from finetune_api.constants import Stage
from finetune_trainer.supervisor.preload import import_libraries, prepare_environment

prepare_environment("cpu")
import_libraries("cpu", [Stage(sys.argv[1])])
def packages():
    loaded = [name for name, module in sys.modules.items() if module is not None]
    names = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    return {name for name in names if not name.startswith("_")}

before = packages()
__import__(sys.argv[2])
heavy = {"torch", "transformers", "peft", "scipy", "sklearn", "deepspeed", "bitsandbytes", "mlflow", "wandb"}
print("heavy:", *sorted(heavy & before))
print("late:", *sorted(packages() - before))
print("compiler:", "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.parametrize(
    ("stage", "module", "heavy"),
    [
        ("prepare", "finetune_trainer.data.prepare", "torch transformers"),
        ("train", "finetune_trainer.train.stage", "deepspeed peft torch transformers"),
        ("evaluate", "finetune_trainer.evaluate.stage", "peft scipy torch transformers"),
    ],
)
def test_a_server_of_one_stage_imports_only_what_that_stage_needs(stage: str, module: str, heavy: str) -> None:
    command = [sys.executable, "-c", _IMPORTS, stage, module]
    reported = subprocess.run(command, env=base_environment(), capture_output=True, text=True, check=True).stdout
    assert reported.splitlines()[-3:] == [f"heavy: {heavy}", "late:", "compiler: False"]


_STARTER = """
import sys, time
from pathlib import Path
from finetune_trainer.supervisor.forkclient import ForkServerProcess
print("server", ForkServerProcess.start(Path(sys.argv[1])).process.pid, flush=True)
time.sleep(1000)
"""


def test_a_server_that_is_importing_exits_with_the_process_that_started_it(tmp_path: Path) -> None:
    output = tmp_path / "log"
    with output.open("wb") as file:
        command = [sys.executable, "-c", _STARTER, str(tmp_path / "s")]
        starter = subprocess.Popen(command, env=base_environment(), stdout=file)
    pid = int(until(lambda: output.read_text().split(), within=30, what="the server is started")[1])
    starter.kill()
    starter.wait()
    until(lambda: not is_alive(pid), within=3, what="the server has exited")


def test_forked_ranks_reduce_over_gloo_faster_than_torchrun_starts_them(start: Start, tmp_path: Path) -> None:
    assert start("succeed")[0].wait(60) == 0  # the server is ready
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = time.monotonic()
    ranks = [start("all_reduce", RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(2)]
    assert [rank.wait(60) for rank, _ in ranks] == [0, 0]
    forked = time.monotonic() - started
    assert {output.read_text().splitlines()[-1] for _, output in ranks} == {"sum=3 product=512"}

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command += [str(Path(__file__).parents[2] / "support" / "rank_targets.py"), "all_reduce"]
    started = time.monotonic()
    subprocess.run(command, env=base_environment(), check=True, capture_output=True, timeout=120)
    launched = time.monotonic() - started
    print(f"two ranks, gloo all_reduce: forked {forked:.2f} s, torchrun {launched:.2f} s")
    assert forked < launched
