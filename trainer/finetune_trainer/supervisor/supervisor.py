"""PID 1 of every trainer pod: starts the local ranks, serves their progress and reports how they exited.

It does not import torch, so that it serves requests within a second of its start. A fork server starts the ranks: the
one that the environment names, otherwise one that the supervisor starts.
"""

import os
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from finetune_api.constants import PROGRESS_PORT, RENDEZVOUS_PORT, Env, Stage
from finetune_api.exit_codes import ExitCode
from finetune_api.progress import TerminationMessage
from finetune_api.redaction import hide_credentials
from finetune_api.trainer_config import TrainerConfig

from ..errors import PROGRAM_ERROR_ADVICE, BadConfigError, UsageError, described, is_program_error, printable
from ..memory import memory_kills, probe_kills, record_probe_kills
from ..progress import PROGRESS_FILE
from ..rank_main import read_config, read_result, result_path
from ..runtime import number, variable
from .forkclient import RUN_RANK, ForkClient, ForkServerProcess
from .outcome import RankExit, decisive_exit, exit_status, termination_message
from .progress_server import read_progress, serve_progress
from .rank_group import Output, RankGroup

GRACE_SECONDS = 5.0
"""Time between SIGTERM and SIGKILL for the other ranks after one has failed. It suffices to write a log line; the ranks
cannot save, because they wait for the failed rank in a collective."""

FINAL_READ_SECONDS = 5.0
"""How long the supervisor of a stopped rank 0 waits for the operator, which polls every few seconds, to read the final
progress.

The API server removes a deleted pod as soon as it has terminated, usually before its termination message is read.
Without this wait, the checkpoint that was saved at the stop would not appear in the job's status.
"""


@dataclass(frozen=True)
class Options:
    """Options of a supervisor in addition to its configuration file."""

    stage: Stage
    config: Path
    environ: Mapping[str, str]
    target: str = RUN_RANK
    """Function that every rank runs, as `module:function`."""
    grace_seconds: float = GRACE_SECONDS
    final_read_seconds: float = FINAL_READ_SECONDS


def supervise(options: Options) -> int:
    """Run one stage in one pod, write the termination message and return the exit code. Call it in the main thread.

    Raises UsageError if an environment variable is missing or invalid. Every other error is turned into a termination
    message and an exit code.
    """
    started = time.time()
    environ = options.environ
    scratch = Path(variable(environ, Env.SCRATCH))
    host, port = environ.get(Env.PROGRESS_HOST, ""), number(environ, Env.PROGRESS_PORT, PROGRESS_PORT)
    node_rank = number(environ, Env.NODE_RANK, 0)
    try:
        return _supervise(options, scratch, (host, port), node_rank, started)
    except UsageError:
        raise
    except BadConfigError as error:
        return _refuse(options, ExitCode.BAD_CONFIG, str(error), error.advice)
    except OSError as error:
        return _refuse(options, ExitCode.INTERNAL_ERROR, f"the supervisor failed: {error}")
    except Exception as error:  # noqa: BLE001 - every error must be reported in the termination message
        traceback.print_exc()
        reason = f"internal error of the supervisor: {described(error)}"
        if is_program_error(error):
            return _refuse(options, ExitCode.PROGRAM_ERROR, reason, PROGRAM_ERROR_ADVICE)
        return _refuse(options, ExitCode.INTERNAL_ERROR, reason)


def _supervise(options: Options, scratch: Path, address: tuple[str, int], node_rank: int, started: float) -> int:
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / PROGRESS_FILE).unlink(missing_ok=True)
    with ExitStack() as stack:
        group = RankGroup(grace_seconds=options.grace_seconds)
        group.catch_signals(stack)
        final_read = serve_progress(scratch, stage=options.stage, host=address[0], port=address[1])
        config = read_config(options.config)
        if config.stage is not options.stage:
            reason = f"{options.config} is for the {config.stage} stage, not for {options.stage}"
            return _refuse(options, ExitCode.USAGE, reason, f"run {config.stage} instead")
        status = _Pod(options, config, scratch, group).run(stack, started)
        if status == ExitCode.STOPPED and config.stage is Stage.TRAIN and node_rank == 0:
            final_read.wait(options.final_read_seconds)
        return status


@dataclass(frozen=True)
class _Pod:
    """Runs the ranks of this pod."""

    options: Options
    config: TrainerConfig
    scratch: Path
    group: RankGroup

    def run(self, stack: ExitStack, started: float) -> int:
        kills = memory_kills()
        record_probe_kills(self.scratch, 0)
        server_output, client = self._fork_server(stack)
        shared = {**self.options.environ, Env.FORK_SERVER: str(client.path)}
        for rank, environ in rank_environments(self.config, shared, started=started):
            result_path(self.scratch, rank).unlink(missing_ok=True)
            output = Output(f"rank {rank}")
            process = client.start_rank(environ, self.options.config, output.write_end, target=self.options.target)
            self.group.add(rank, process, output)
        exits = self.group.wait()
        kills += probe_kills(self.scratch)
        return self._conclude(exits, server_output, memory_kills() - kills)

    def _fork_server(self, stack: ExitStack) -> tuple[Output | None, ForkClient]:
        """Return a client of the shared fork server, if any, else of a new one, with its output.

        A shared fork server can start ranks for the CPU only: DeepSpeed chooses its device when it is imported.
        """
        shared = self.options.environ.get(Env.FORK_SERVER)
        if shared and not self.config.world.gpus:
            return None, ForkClient(Path(shared))
        output = Output("fork server")
        server = ForkServerProcess.start(
            self.scratch / "forkserver.sock",
            accelerator="cuda" if self.config.world.gpus else "cpu",
            stage=self.config.stage,
            env=self.options.environ,
            output=output.write_end,
        )
        stack.callback(server.stop)
        self.group.watch(output)
        return output, ForkClient(server.path)

    def _conclude(self, exits: list[RankExit], server_output: Output | None, kills: int) -> int:
        decisive = decisive_exit(exits)
        status = 0 if decisive is None else exit_status(decisive, memory_kills=kills)
        lines: list[str] = []
        if decisive is not None:
            lines = self.group.last_lines(decisive.rank)
            if decisive.error and server_output is not None:
                server_output.pump()
                lines = [*server_output.last_lines, *lines]
        message = termination_message(
            decisive,
            read_result(self.scratch, exits[0].rank) if decisive is None else self._result_of_failed(decisive.rank),
            stage=self.config.stage,
            status=status,
            last_lines=lines,
            progress=read_progress(self.scratch, self.config.stage),
        )
        write_termination_message(message, self.options.environ)
        return status

    def _result_of_failed(self, rank: int) -> TerminationMessage | None:
        """Read the result of a failed rank. An unreadable result is logged, so that it does not hide the failure."""
        try:
            return read_result(self.scratch, rank)
        except ValueError:
            traceback.print_exc()
            return None


def rank_environments(
    config: TrainerConfig, environ: Mapping[str, str], *, started: float
) -> list[tuple[int, dict[str, str]]]:
    """Return the global rank and the environment of each rank of this pod, with torchrun's variables.

    Only the train stage has more than one process. Raises UsageError if there are several nodes and MASTER_ADDR is
    missing.
    """
    is_training = config.stage is Stage.TRAIN
    nodes = config.world.nodes if is_training else 1
    local = config.world.processes_per_node if is_training else 1
    node_rank = number(environ, Env.NODE_RANK, 0) if is_training else 0
    shared = dict(environ)
    shared[Env.STARTED_TIME] = f"{started:.3f}"
    shared[Env.DS_ACCELERATOR] = "cuda" if config.world.gpus else "cpu"
    shared[Env.MASTER_ADDR] = environ.get(Env.MASTER_ADDR, "127.0.0.1")
    if nodes > 1:
        shared[Env.MASTER_ADDR] = variable(environ, Env.MASTER_ADDR)
    shared[Env.MASTER_PORT] = environ.get(Env.MASTER_PORT) or str(RENDEZVOUS_PORT)
    shared[Env.WORLD_SIZE], shared[Env.LOCAL_WORLD_SIZE] = str(nodes * local), str(local)
    shared.setdefault(Env.OMP_NUM_THREADS, str(max(1, len(os.sched_getaffinity(0)) // local)))
    ranks = []
    for index in range(local):
        rank = node_rank * local + index
        ranks.append((rank, shared | {Env.RANK: str(rank), Env.LOCAL_RANK: str(index)}))
    return ranks


def _refuse(options: Options, code: ExitCode, error: str, advice: str = "") -> int:
    """Report an error that occurred before the ranks were started."""
    error, advice = printable(error), printable(advice)
    message = TerminationMessage(stage=options.stage, exit_code=code, error=error, advice=advice)
    write_termination_message(message, options.environ)
    print("; ".join(filter(None, [error, advice])), flush=True)
    return code


def write_termination_message(message: TerminationMessage, environ: Mapping[str, str]) -> None:
    """Write the message to the file that the environment names, if any. It becomes part of the job's status."""
    if path := environ.get(Env.TERMINATION_LOG):
        shown = {
            "error": hide_credentials(message.error),
            "last_lines": tuple(map(hide_credentials, message.last_lines)),
        }
        Path(path).write_text(message.model_copy(update=shown).encode())
