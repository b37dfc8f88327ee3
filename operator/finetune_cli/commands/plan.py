"""`finetune plan`: what a run will do and need, before it trains."""

import json
import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from finetune_api.constants import Stage
from finetune_api.v1alpha1 import AttemptPlan
from finetune_operator.policy.world import stage_config

from ..display.forecast import as_json, markdown_lines, text_lines
from ..job_file import read_job_file
from ..local.storage import shared_storage
from ..terminal import echo
from .options import DEFAULT_WORK_DIR, Endpoint, JobPath, WorkDir


class Output(StrEnum):
    """Output format."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


def plan(
    job: JobPath,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="Output format; markdown is for pull requests.")
    ] = Output.TEXT,
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    endpoint: Endpoint = None,
) -> None:
    """Show steps, memory, storage and time of a run.

    Prepares the run on this machine as its first stage would, which chooses ZeRO stage, batching and data type and
    refuses a training that does not fit. Nothing is trained. The prepared data is stored under spec.output.uri, where
    the run finds it. The time is known when a run of the same output has been trained before.

    Exit status: 0 it can be trained, 65 the job or its data is invalid, 66 a file or the model is missing or cannot be
    used, 69 storage or hub unreachable, 77 access denied, 78 the training does not fit or cannot work.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise DeepSpeed searches for one, and warns if there is none
    from finetune_trainer.forecast import forecast_job

    checked = read_job_file(job).check(local=True)
    cache = (work_dir / "cache").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    with shared_storage(work_dir, endpoint or checked.spec.storage.endpoint) as storage:
        storage.ensure_bucket(checked.spec.output.uri)
        store = storage.connect()
        config = stage_config(checked, 1, Stage.TRAIN, 1, storage.settings)
        with tempfile.TemporaryDirectory(prefix="finetune-plan-") as scratch:
            found = forecast_job(config, store, scratch=Path(scratch), cache=cache)
    limit = found.prepared.micro_batch_limit
    if limit is not None:
        plan = AttemptPlan(nodes=checked.spec.workers.nodes, micro_batch_limit=limit)
        config = stage_config(checked, 1, Stage.TRAIN, 1, storage.settings, plan=plan)
    if output is Output.JSON:
        echo(json.dumps(as_json(config, found), indent=2))
        return
    lines = markdown_lines if output is Output.MARKDOWN else text_lines
    echo("\n".join(lines(config, found)))
