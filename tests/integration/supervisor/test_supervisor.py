import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest

from finetune_api.constants import Env, Stage
from finetune_api.progress import Progress, TerminationMessage
from finetune_trainer.supervisor.forkclient import ForkServerProcess
from process_support import Pod, base_environment, free_port, is_alive, make_config, until

StartPod = Callable[..., Pod]


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def answered(port: int, path: str) -> str | None:
    try:
        return get(port, path)
    except URLError:
        return None


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_progress_is_served_within_a_second_of_starting(start_pod: StartPod) -> None:
    """In seconds of CPU time, which does not depend on other load of the machine."""
    pod = start_pod("succeed", shared=False)  # its own fork server, so ranks start seconds later
    text = until(lambda: answered(pod.port, "/progress"), within=30, what="an answer")
    assert cpu_seconds(pod.process.pid) < 1.0
    assert Progress.model_validate_json(text) == Progress(stage="train", activity="starting")
    assert get(pod.port, "/healthz") == "ok\n"
    pod.process.kill()


def test_progress_and_metrics_show_what_rank_0_reports(start_pod: StartPod) -> None:
    pod = start_pod("report_progress")
    until(lambda: '"step":3' in (answered(pod.port, "/progress") or ""), within=60, what="step 3")
    progress = Progress.model_validate_json(get(pod.port, "/progress"))
    assert (progress.step, progress.total_steps, progress.loss, progress.attempt) == (3, 10, 0.5, 1)
    assert progress.phase_seconds["import"] > 0
    assert 'finetune_step{stage="train",attempt="1"} 3\n' in get(pod.port, "/metrics")
    with pytest.raises(HTTPError, match="404"):
        get(pod.port, "/nothing")
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait() == 75
    assert (pod.message.exit_code, pod.message.error) == (75, "stopped at step 3")
    assert pod.message.progress is not None
    assert pod.message.progress.step == 3


def test_ranks_get_the_environment_that_torchrun_would_set(start_pod: StartPod) -> None:
    pod = start_pod("show_environment", processes=2, **{Env.NODE_RANK: "0", "MARK": "here"})
    assert pod.wait() == 0
    lines = sorted(line for line in pod.lines() if "RANK=" in line)
    for rank, line in enumerate(lines):
        assert line.startswith(f"[rank {rank}] RANK={rank} WORLD_SIZE=2 LOCAL_RANK={rank} LOCAL_WORLD_SIZE=2")
        assert "MASTER_ADDR=127.0.0.1 OMP_NUM_THREADS=1 MARK=here config=config.json" in line
    assert len(lines) == 2


def test_a_rank_that_saves_has_an_uploader_in_its_session_before_its_stage_is_imported(start_pod: StartPod) -> None:
    """In another session the uploader's low priority would have no effect. It ends by SIGTERM like any process."""
    pod = start_pod("list_own_processes")
    assert pod.wait() == 0
    found = [line.removeprefix("[rank 0] ").split() for line in pod.lines() if "session" in line or "child" in line]
    (_, session), *children = found
    assert children == [["child", "uploader", session, "1", "True"]]


def test_a_rank_that_saves_nothing_has_no_uploader(start_pod: StartPod) -> None:
    pod = start_pod("list_own_processes", stage=Stage.EVALUATE)
    assert pod.wait() == 0
    assert not [line for line in pod.lines() if "child" in line]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_two_ranks_form_a_process_group(start_pod: StartPod, address: str) -> None:
    pod = start_pod("all_reduce", processes=2, **{Env.MASTER_ADDR: address})
    assert pod.wait() == 0
    assert sum("sum=3 product=512" in line for line in pod.lines()) == 2
    assert pod.message == TerminationMessage(
        stage="train", exit_code=0, progress=Progress(stage="train", activity="starting")
    )


def test_a_gather_by_broadcast_gives_the_same_bytes_as_that_of_gloo(start_pod: StartPod) -> None:
    pod = start_pod("gather_both_ways", processes=2)
    assert pod.wait() == 0, pod.lines()
    assert sum("gathered 36 times" in line for line in pod.lines()) == 2


def test_the_stage_result_is_in_the_termination_message(start_pod: StartPod) -> None:
    pod = start_pod("evaluated", stage=Stage.EVALUATE)
    assert pod.wait() == 0
    assert pod.message.evaluated is not None
    assert pod.message.evaluated.report_uri == "s3://bucket/report.html"
    assert pod.message.progress is not None
    assert pod.message.progress.started_time is not None


@pytest.mark.parametrize("shared", [True, False], ids=["shared-server", "own-server"])
def test_a_killed_supervisor_leaves_no_rank_alive(start_pod: StartPod, shared: bool) -> None:
    pod = start_pod("wait_forever", processes=2, shared=shared)
    pids = pod.waiting_pids(2)
    assert len(pids) == 4  # two ranks, and a child of each
    pod.process.kill()
    until(lambda: not any(map(is_alive, pids)), within=5, what="no rank is running")


def test_the_message_of_a_killed_rank_has_its_number_and_last_lines(start_pod: StartPod) -> None:
    pod = start_pod("wait_forever", processes=2)
    pids = pod.waiting_pids(2)
    os.kill(pids[0], signal.SIGKILL)
    assert pod.wait(within=10) == 137
    message = pod.message
    assert message.exit_code == 137
    assert message.rank in (0, 1)
    assert message.error == f"rank {message.rank} was terminated by signal 9 (SIGKILL)"
    assert message.last_lines == (f"waiting {pids[0]} {pids[1]}",)
    until(lambda: not any(map(is_alive, pids)), within=5, what="the other rank has also exited")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_is_forwarded_and_a_second_one_ignored(start_pod: StartPod, number: signal.Signals) -> None:
    pod = start_pod("stop_on_sigterm", processes=2)
    pod.waiting_pids(2)
    pod.process.send_signal(number)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait() == 75
    assert sum("stopped after the step" in line for line in pod.lines()) == 2
    assert pod.message.exit_code == 75


def test_a_stop_request_before_the_ranks_start_is_also_a_stop(start_pod: StartPod) -> None:
    pod = start_pod("stop_on_sigterm", processes=2, shared=False)
    until(lambda: answered(pod.port, "/healthz"), within=10, what="the supervisor runs")
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait(within=8) == 75
    assert pod.message.exit_code == 75


def test_a_stopped_pod_waits_until_its_last_progress_is_read(start_pod: StartPod) -> None:
    """A deleted pod is removed from the API as soon as it has terminated, before its termination message is read."""
    pod = start_pod("report_progress")
    until(lambda: '"step":3' in (answered(pod.port, "/progress") or ""), within=60, what="step 3")
    pod.process.send_signal(signal.SIGTERM)
    until((pod.scratch / "termination.json").exists, within=30, what="the ranks have ended")
    assert pod.process.poll() is None
    get(pod.port, "/progress")  # a request that is not from the operator
    with pytest.raises(subprocess.TimeoutExpired):
        pod.wait(within=0.5)
    last = Progress.model_validate_json(get(pod.port, "/progress?for=status"))
    assert last.last_checkpoint is not None
    assert last.last_checkpoint.step == 3
    assert pod.wait(within=3) == 75


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.EVALUATE])
def test_a_stage_without_state_stops_immediately(start_pod: StartPod, stage: Stage) -> None:
    pod = start_pod("evaluate_forever", stage=stage)
    pod.waiting_pids(1)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait(within=10) == 75
    assert pod.message.error == f"the {stage} stage was stopped on request"


def test_bad_data_on_one_rank_determines_the_result_of_the_pod(start_pod: StartPod) -> None:
    pod = start_pod("bad_data", processes=2)
    assert pod.wait() == 65
    message = pod.message
    assert (message.exit_code, message.rank) == (65, 1)
    assert message.error == "train.jsonl, line 7: no column 'text'"
    assert message.advice == "name the column in spec.data.columns.text"
    assert "ERROR train.jsonl, line 7: no column 'text'" in message.last_lines
    record = next(json.loads(line) for line in pod.lines() if line.startswith("{") and "ERROR" in line)
    assert (record["rank"], record["message"]) == (1, "train.jsonl, line 7: no column 'text'")


def test_a_rank_that_the_kernel_kills_for_memory_is_out_of_memory(
    start_pod: StartPod, limited_memory: list[str]
) -> None:
    pod = start_pod("use_up_memory", shared=False, prefix=limited_memory)
    assert pod.wait() == 80
    assert pod.message.error == "rank 0 was killed by the kernel because the pod reached its memory limit"
    assert "spec.workers.resources.limits.memory" in pod.message.advice


def test_an_uncaught_error_leaves_its_traceback(start_pod: StartPod) -> None:
    pod = start_pod("raise_value_error")
    assert pod.wait() == 79
    assert pod.message.error == "rank 0 exited with code 79 (ProgramError) without a result"
    assert pod.message.last_lines[-1] == "ValueError: a target that raises"


def test_a_missing_fork_server_is_reported(start_pod: StartPod, tmp_path: Path) -> None:
    pod = start_pod("succeed", **{Env.FORK_SERVER: str(tmp_path / "gone.sock")})
    assert pod.wait() == 70
    assert f"no fork server is listening at {tmp_path}/gone.sock" in pod.message.error


def test_the_pod_fails_with_its_fork_server(start_pod: StartPod, tmp_path: Path) -> None:
    server = ForkServerProcess.start(tmp_path / "fork.sock", env=base_environment())
    try:
        pod = start_pod("wait_forever", processes=2, **{Env.FORK_SERVER: str(server.path)})
        pids = pod.waiting_pids(2)
        server.process.kill()
        assert pod.wait(within=10) == 137
        assert "the fork server ended" in pod.message.error
        ranks = [pids[0], pids[2]]
        until(lambda: not any(map(is_alive, ranks)), within=5, what="the ranks have exited")
    finally:
        server.stop()
        for child in (pids[1], pids[3]):  # grandchildren of a killed server have no parent, so the test kills them
            os.kill(child, signal.SIGKILL)


def run_module(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finetune_trainer", *arguments],
        env=base_environment() | {Env.PROGRESS_HOST: "127.0.0.1"} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_unknown_stage_is_a_usage_error() -> None:
    result = run_module("pretend", "--config", "config.json")
    assert result.returncode == 64
    assert "invalid choice: 'pretend'" in result.stderr


def test_a_missing_variable_is_reported() -> None:
    result = run_module("train", "--config", "config.json")
    assert result.returncode == 64
    assert "environment variable FINETUNE_SCRATCH is missing" in result.stderr


def test_a_variable_that_is_not_a_number_is_reported(tmp_path: Path) -> None:
    message = tmp_path / "message"
    env = {Env.SCRATCH: str(tmp_path), Env.TERMINATION_LOG: str(message), Env.PROGRESS_PORT: "http"}
    assert run_module("train", "--config", "config.json", **env).returncode == 64
    assert "environment variable FINETUNE_PROGRESS_PORT must be a whole number, not 'http'" in message.read_text()


def test_an_error_of_the_supervisor_itself_is_not_a_usage_error(start_pod: StartPod) -> None:
    pod = start_pod("write_damaged_result")
    assert pod.wait() == 79
    assert "internal error of the supervisor: JSONDecodeError" in pod.message.error
    assert "not retried" in pod.message.advice


def test_a_failure_is_reported_even_if_its_result_cannot_be_read(start_pod: StartPod) -> None:
    pod = start_pod("fail_with_damaged_result")
    assert pod.wait() == pod.message.exit_code == 77
    assert "internal error" not in pod.message.error


@pytest.mark.parametrize(
    ("content", "code", "error"),
    [
        ("{", 78, "Invalid JSON"),
        ("{}", 78, "first: job: Field required"),
        (None, 78, "No such file or directory"),
        (make_config(Stage.EVALUATE, 1).model_dump_json(), 64, "is for the evaluate stage, not for train"),
    ],
)
def test_an_invalid_configuration_is_rejected(tmp_path: Path, content: str | None, code: int, error: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    env = {
        Env.SCRATCH: str(tmp_path),
        Env.TERMINATION_LOG: str(tmp_path / "message"),
        Env.PROGRESS_PORT: str(free_port()),
    }
    result = run_module("train", "--config", str(tmp_path / "config.json"), **env)
    assert result.returncode == code
    message = TerminationMessage.decode((tmp_path / "message").read_text())
    assert message is not None
    assert (message.stage, message.exit_code) == ("train", code)
    assert error in message.error
    assert error in result.stdout
