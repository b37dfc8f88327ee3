"""Complete runs on one machine: each of them succeeds or reports the reason."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.constants import Phase, Stage
from finetune_api.progress import Progress
from finetune_api.v1alpha1 import AttemptStatus, CandidateName, FineTuneJob, Metric, Outcome
from finetune_operator.clusters.local import LocalCluster
from finetune_trainer.data.labels import MAX_CLASSES
from rows import many_classes

LOADS_THE_MODEL = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, loading = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], output_loading_info=True)
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
inputs = AutoTokenizer.from_pretrained(sys.argv[1])("the big blue house", return_tensors="pt")
print(model.config.id2label[int(model(**inputs).logits.argmax())])
"""


def attempts_at(job: FineTuneJob, stage: Stage) -> list[AttemptStatus]:
    return [attempt for attempt in job.status.run.attempts if attempt.stage is stage]


class After:
    """Performs an action once training has passed a step and a checkpoint is committed."""

    def __init__(self, step: int, action: str) -> None:
        self.step, self.action, self.done = step, action, False
        self.committed = 0

    def __call__(self, job: FineTuneJob, progress: Progress | None, cluster: LocalCluster) -> None:
        if self.done or progress is None or progress.step < self.step or progress.last_checkpoint is None:
            return
        self.done, self.committed = True, progress.last_checkpoint.step
        if self.action == "kill":
            cluster.kill_pod(job.status.run.attempts[-1].job_name, 1)
        else:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_killed_worker_costs_only_an_attempt(bench, tmp_path: Path) -> None:
    killer = After(30, "kill")
    job = bench.run(bench.job(training={"epochs": 25, "learningRate": 5e-3, "warmup": {"ratio": 0.1}}), killer)
    first, second = attempts_at(job, Stage.TRAIN)
    assert job.status.phase is Phase.SUCCEEDED
    assert (first.outcome, first.reason, second.outcome) == (Outcome.RETRYABLE, "Signal9", Outcome.SUCCEEDED)
    assert second.resumed_from_step is not None
    assert second.resumed_from_step >= killer.committed > 0
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.ACCURACY] > 0.6 > baseline[Metric.ACCURACY]

    assert job.status.run.artifact is not None
    folder = tmp_path / "model-out"
    bench.store.download_folder(job.status.run.artifact.uri, folder)
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS_THE_MODEL, str(folder)], capture_output=True, text=True, check=False
    )
    assert loaded.stdout.strip() in {"red", "green", "blue", "black"}, loaded.stderr
    record = bench.store.get_json(job.status.run.artifact.report.replace("report.html", "evaluation.json"))
    (reloaded,) = record["reloaded"]
    assert (reloaded["uri"], reloaded["split"]) == (job.status.run.artifact.uri, "validation")
    assert reloaded["reloaded"] == pytest.approx(reloaded["trained"], abs=1e-4)
    page = bench.store.get(job.status.run.artifact.report).decode()
    assert f"the loss is {reloaded['reloaded']:.4f}" in page


def test_ctrl_c_saves_and_a_second_call_resumes(bench) -> None:
    stopped = bench.run(bench.job(), After(6, "interrupt"))
    assert stopped.status.phase is Phase.SUSPENDED
    resumed = bench.run(bench.job())
    first, second = attempts_at(resumed, Stage.TRAIN)
    assert resumed.status.phase is Phase.SUCCEEDED
    assert first.outcome is Outcome.STOPPED
    assert (first.last_step or 0) <= (second.resumed_from_step or 0) + 1
    assert resumed.status.run.restarts == 0


def test_a_changed_spec_is_a_new_run_on_the_same_prepared_data(bench) -> None:
    first = bench.run(bench.job())
    second = bench.run(bench.job(training={"learningRate": 2e-3}))
    again = bench.run(bench.job(training={"learningRate": 2e-3}))
    assert [job.status.run.number for job in (first, second, again)] == [1, 2, 2]
    assert first.status.run.resolved is not None
    assert second.status.run.resolved is not None
    assert first.status.run.resolved.dataset == second.status.run.resolved.dataset
    assert again.status.run.completion_time == second.status.run.completion_time
    for job in (first, second):
        assert job.status.run.artifact is not None
        folder = job.status.run.artifact.uri.removesuffix("/model")
        assert folder == f"s3://{bench.bucket}/out/runs/r000{job.status.run.number}-{first.metadata.uid[:8]}"
        record = bench.store.get_json(f"{folder}/evaluation.json")
        assert (record["run"], record["model"]["uri"]) == (job.status.run.number, job.status.run.artifact.uri)
        assert record["model"]["digest"] == job.status.run.artifact.digest
    pages = [bench.store.get(job.status.run.artifact.report).decode() for job in (first, second)]
    assert ["Earlier runs of the job" in page for page in pages] == [False, True]
    compared = pages[1].partition("Earlier runs of the job")[2].partition("<h2>Configuration</h2>")[0]
    assert "A is this run, B is run 1." in " ".join(compared.split())
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", compared)
    rate = cells.index("spec.training.learningRate")
    assert cells[rate + 1 : rate + 3] == ["0.002", "0.001"]
    assert compared.count("<svg") >= 3, "training loss, validation loss and accuracy"
    assert "unknown" not in compared, "costs, which no run in storage has, are not mentioned"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"text": "a", "label": "red"}\n{"text": "b", "harness', ("data.jsonl", "line 2")),
        (b"", ("data.jsonl", "empty")),
        (b'{"text": "a", "label": "red"}\n' * 40, ("red",)),
        (b'{"question": "a", "label": "red"}\n' * 40, ("question", "spec.data.columns")),
    ],
    ids=["malformed line", "empty file", "one class", "missing column"],
)
def test_bad_data_ends_the_run_before_training_with_its_location(bench, content: bytes, words: tuple[str, ...]) -> None:
    bench.store.put(f"s3://{bench.bucket}/data.jsonl", content)
    job = bench.run(bench.job(data={"format": "Classification"}))
    assert job.status.phase is Phase.FAILED
    assert job.status.run.failure is not None
    assert (job.status.run.failure.failure_class, job.status.run.failure.stage) == ("BadData", "prepare")
    reported = f"{job.status.run.failure.message} {job.status.run.failure.advice}"
    assert [word for word in words if word not in reported] == [], reported
    assert attempts_at(job, Stage.TRAIN) == []


def test_a_failed_run_is_retried_by_the_next_call(bench) -> None:
    good, place = bench.store.get(f"s3://{bench.bucket}/data.jsonl"), f"s3://{bench.bucket}/data.jsonl"
    bench.store.put(place, b"")
    same = bench.job(data={"format": "Classification"})
    assert [bench.run(same).status.phase for _ in range(2)] == [Phase.FAILED] * 2
    bench.store.put(place, good)
    job = bench.run(same)
    assert (job.status.phase, job.status.run.number) == (Phase.SUCCEEDED, 1)
    assert [attempt.outcome for attempt in attempts_at(job, Stage.PREPARE)] == [
        Outcome.PERMANENT,
        Outcome.PERMANENT,
        Outcome.SUCCEEDED,
    ]


def test_a_wrong_bucket_is_reported(bench) -> None:
    job = bench.run(bench.job(output={"uri": "s3://no-such-bucket/out"}))
    assert job.status.run.failure is not None
    assert job.status.run.failure.failure_class == "BadConfig"
    assert "no-such-bucket" in job.status.run.failure.message


def test_kinds_of_wrong_credentials_are_distinguished(bench) -> None:
    job = bench.run(bench.job(), AWS_SECRET_ACCESS_KEY="wrong")
    assert job.status.run.failure is not None
    assert job.status.run.failure.failure_class == "AccessDenied"


def test_jobs_with_the_same_output_do_not_interfere(bench) -> None:
    """A job that is deleted and created again with the same name is also another one, and starts from the beginning.

    With as many classes as a classifier may have, whose names do not fit into a termination message.
    """
    bench.store.put(f"s3://{bench.bucket}/data.jsonl", many_classes(MAX_CLASSES))
    adapter = {"method": {"lora": {"rank": 4}}, "output": {"formats": ["Merged", "Adapter"]}}
    jobs = [bench.job("first"), bench.job("second", **adapter)]
    for job in jobs:
        job["spec"]["training"] = {"learningRate": 1e-3, "globalBatchSize": 16, "maxSteps": 2}
    found = [bench.run(job) for job in jobs]
    assert [job.status.phase for job in found] == [Phase.SUCCEEDED] * 2
    assert len({job.status.run.artifact.uri for job in found}) == 2
    assert [attempts_at(job, Stage.TRAIN)[0].resumed_from_step for job in found] == [None, None]
    assert len({job.status.run.resolved.dataset for job in found}) == 1
    record = bench.store.get_json(found[1].status.run.artifact.report.replace("report.html", "evaluation.json"))
    folder = found[1].status.run.artifact.uri.removesuffix("/model")
    assert [entry["uri"] for entry in record["reloaded"]] == [f"{folder}/model", f"{folder}/adapter"]
    for job in found:
        model = job.status.run.artifact.uri
        assert len(bench.store.get_json(f"{model}/config.json")["id2label"]) == MAX_CLASSES
        figures = bench.store.get_json(f"{model.removesuffix('/model')}/evaluation.json")["tuned"]["classification"]
        assert figures["classes"] == MAX_CLASSES
        assert len(figures["per_class"]) <= 100
        assert len(job.status.model_dump_json()) < 20_000


def test_a_format_that_is_added_to_a_finished_job_is_exported_without_training(bench, tmp_path: Path) -> None:
    spec = {"method": {"lora": {"rank": 4}}, "training": {"epochs": 2, "learningRate": 5e-3}}
    first = bench.run(bench.job(output={"formats": ["Adapter"]}, **spec))
    assert first.status.run.artifact is not None
    assert first.status.run.artifact.uri.endswith("/adapter")
    run = first.status.run.artifact.uri.rpartition("/")[0]
    bench.store.put(f"{run}/model/tokenizer.json", b"{}")  # remains of an export that was stopped
    both = bench.run(bench.job(output={"formats": ["Merged", "Adapter", "Int8"]}, **spec))
    assert (both.status.phase, both.status.run.number) == (Phase.SUCCEEDED, 1)
    assert [entry.number for entry in attempts_at(both, Stage.TRAIN)] == [1]
    assert [entry.number for entry in attempts_at(both, Stage.EVALUATE)] == [1, 2]
    assert both.status.run.artifact is not None
    assert both.status.run.artifact.uri.endswith("/model")
    # The product has compared both folders with the trained model; this reloads the merged one independently.
    figures = [job.status.metrics_of(CandidateName.TUNED) for job in (first, both)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    int8 = both.status.run.candidates[CandidateName.INT8]
    assert int8.metrics[Metric.ACCURACY] == pytest.approx(figures[1][Metric.ACCURACY], abs=0.1)
    assert int8.bytes is not None
    assert int8.bytes < both.status.run.candidates[CandidateName.TUNED].bytes
    folder = tmp_path / "merged"
    bench.store.download_folder(both.status.run.artifact.uri, folder)
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS_THE_MODEL, str(folder)], capture_output=True, text=True, check=False
    )
    assert loaded.stdout.strip() in {"red", "green", "blue", "black"}, loaded.stderr
