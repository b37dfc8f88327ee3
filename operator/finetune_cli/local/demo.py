"""The demo: fine-tune a real model on real data with two workers, and kill one of them halfway through.

The run is that of `finetune run` with the quickstart sample, plus a hook that kills the worker.
"""

import dataclasses
import json
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from finetune_api.constants import Phase, Stage
from finetune_api.lost_work import LostWork, lost_work
from finetune_api.progress import Progress
from finetune_api.run_layout import RunLayout
from finetune_api.v1alpha1 import AttemptStatus, CandidateName, FineTuneJob
from finetune_operator.clusters.local import LocalCluster

from ..display import Display
from ..exit_status import CommandError
from ..job_file import JobFile, read_job_file
from . import demo_assets
from .runner import RunResult, run_job
from .state import LocalState
from .storage import LocalStorage

VICTIM = 1
"""Index of the worker that is killed. Not 0, because worker 0 serves the progress that is shown."""

_WORST = 3


@dataclass(frozen=True)
class ClassFigures:
    """F1 scores of one topic of the test split."""

    label: str
    f1: float
    baseline_f1: float | None
    support: int


@dataclass(frozen=True)
class DemoResult:
    """The measurements of the demo."""

    job: FineTuneJob
    report: Path | None
    worst: tuple[ClassFigures, ...]
    """The topics with the lowest F1 of the tuned model."""
    lost: tuple[LostWork, ...]
    seconds: float
    """Wall time from the start to the end of the object store."""

    @property
    def trainings(self) -> list[AttemptStatus]:
        """Attempts of the train stage."""
        return [attempt for attempt in self.job.status.run.attempts if attempt.stage is Stage.TRAIN]

    def as_json(self) -> dict[str, Any]:
        """Return the content of the last line of the output."""
        status, trainings = self.job.status, self.trainings
        return {
            "baseline": _camel(status.metrics_of(CandidateName.BASE_MODEL)),
            "tuned": _camel(status.metrics_of(CandidateName.TUNED)),
            "attempts": len(trainings),
            "resumedFromStep": trainings[-1].resumed_from_step if trainings else None,
            "steps": status.run.progress.total_steps if status.run.progress else None,
            "secondsLost": round(sum(entry.seconds for entry in self.lost), 2),
            "seconds": round(self.seconds, 1),
            "worst": [{"label": entry.label, "f1": round(entry.f1, 4)} for entry in self.worst],
            "report": str(self.report.resolve()) if self.report else None,
            "model": status.run.artifact.uri if status.run.artifact else None,
        }


class Killer:
    """Kills one worker, once, when half of the steps are done and a checkpoint exists."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.killed_at_step: int | None = None
        self.step_seconds = 0.0
        """Recent mean time of a step in seconds, as last reported by rank 0."""

    def __call__(self, job: FineTuneJob, progress: Progress | None, cluster: LocalCluster) -> None:
        """Kill the worker if it is time. Called at every tick of the run."""
        if progress is None or progress.stage != Stage.TRAIN:
            return
        self.step_seconds = progress.step_seconds or self.step_seconds
        if self.killed_at_step is not None or not is_time_to_kill(progress):
            return
        self.killed_at_step = progress.step
        self._display.event(f"killing worker {VICTIM} at step {progress.step} with SIGKILL")
        cluster.kill_pod(job.status.run.attempts[-1].job_name, VICTIM)


def is_time_to_kill(progress: Progress) -> bool:
    """Whether half of the steps are done, but not all of them, and a checkpoint is committed."""
    halfway = progress.total_steps > 0 and progress.total_steps <= 2 * progress.step < 2 * progress.total_steps
    return halfway and progress.last_checkpoint is not None


def run_demo(work_dir: Path, display: Display) -> DemoResult:
    """Run the quickstart sample and kill a worker. Raises one of `exit_status.USER_ERRORS`."""
    started = time.monotonic()
    file = _with_run_nonce(read_job_file(quickstart_file()), LocalState(work_dir))
    killer = Killer(display)
    evaluation: dict[str, Any] = {}

    def upload(storage: LocalStorage) -> None:
        _upload_assets(file.manifest["spec"], storage, display)

    def read_evaluation(job: FineTuneJob, storage: LocalStorage) -> None:
        layout = RunLayout.of(job.spec.output.uri, job.status.run.number, job.metadata.uid)
        evaluation.update(storage.connect().get_json(layout.evaluation))

    finished = run_job(
        file,
        work_dir=work_dir,
        endpoint=None,
        display=display,
        prepare=upload,
        on_tick=killer,
        on_success=read_evaluation,
    )
    return _result(finished, evaluation, killer, time.monotonic() - started)


def quickstart_file() -> Path:
    """Return the path of the sample, in the installed package or in the checkout of this file."""
    packaged = Path(str(files(__package__))) / "quickstart.yaml"
    path = packaged if packaged.exists() else Path(__file__).parents[3] / "manifests/samples/quickstart.yaml"
    if not path.exists():
        raise CommandError(f"{path} is missing; run the demo in a checkout, or reinstall the package", 66)
    return path


def worst_classes(evaluation: dict[str, Any], number: int = _WORST) -> tuple[ClassFigures, ...]:
    """Return the classes with test rows and the lowest F1 of the tuned model, from `evaluation.json`."""
    tuned = _per_class(evaluation, "tuned")
    baseline = _per_class(evaluation, "baseline")
    found = [
        ClassFigures(label, entry["f1"], baseline.get(label, {}).get("f1"), entry["support"])
        for label, entry in tuned.items()
        if entry["support"]
    ]
    return tuple(sorted(found, key=lambda entry: (entry.f1, entry.label))[:number])


def _per_class(evaluation: dict[str, Any], model: str) -> dict[str, Any]:
    figures = (evaluation.get(model) or {}).get("classification") or {}
    return {entry["label"]: entry for entry in figures.get("per_class", ())}


def _with_run_nonce(file: JobFile, state: LocalState) -> JobFile:
    """Start a new run after a completed demo; resume an interrupted one."""
    name = file.manifest["metadata"]["name"]
    before = next((job for job in state.jobs() if job.key.name == name), None)
    if before is None:
        return file
    run_nonce = before.manifest["spec"].get("runNonce")
    if before.status.phase.is_terminal and before.status.phase is not Phase.SUSPENDED:
        run_nonce = f"demo-{before.status.run.number + 1}"
    if run_nonce is None:
        return file
    return dataclasses.replace(
        file, manifest={**file.manifest, "spec": {**file.manifest["spec"], "runNonce": run_nonce}}
    )


def _upload_assets(spec: dict[str, Any], storage: LocalStorage, display: Display) -> None:
    model, data = spec["model"]["uri"], spec["data"]["train"][0]["uri"]
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    topics = len({topic for _, topic in questions})
    storage.ensure_bucket(model)
    storage.ensure_bucket(data)
    store = storage.connect()
    store.upload_folder(demo_assets.model_folder(), model)
    store.put(data, demo_assets.as_jsonl(questions))
    display.event(
        f"uploaded all-MiniLM-L6-v2 and {len(questions)} questions on {topics} topics to {storage.settings.endpoint}"
    )


def _result(finished: RunResult, evaluation: dict[str, Any], killer: Killer, seconds: float) -> DemoResult:
    trainings = [attempt for attempt in finished.job.status.run.attempts if attempt.stage is Stage.TRAIN]
    return DemoResult(
        job=finished.job,
        report=finished.report,
        worst=worst_classes(evaluation),
        lost=tuple(lost_work(trainings, killer.step_seconds)),
        seconds=seconds,
    )


def _camel(figures: dict[Any, float]) -> dict[str, float]:
    """Convert keys: `MacroF1` to `macroF1`."""
    return {f"{metric.value[0].lower()}{metric.value[1:]}": round(value, 4) for metric, value in figures.items()}


def dump(result: DemoResult) -> str:
    """Return the result as one line of JSON."""
    return json.dumps(result.as_json(), ensure_ascii=False)
