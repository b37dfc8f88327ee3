"""FineTuneJobs on real nodes: real pods train with DeepSpeed, with real storage outside of the cluster."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune_api.constants import Stage
from finetune_cli.local import demo_assets
from finetune_cli.local.embedded_store import EmbeddedStore
from injection import injected, shell_container
from process_support import ROOT
from training_setup import TrainingSetup, attempts_at, upload_demo

QUICKSTART = ROOT / "manifests/samples/quickstart.yaml"
NAME = "topic-classifier"


@pytest.fixture
def quickstart(setup: TrainingSetup, store_server: EmbeddedStore) -> TrainingSetup:
    """The setup of a reader of the README: a cluster, an operator, a real model and real questions in the bucket
    `demo`."""
    upload_demo(store_server, setup.store)
    return setup


def written_for_a_test(folder: Path) -> str:
    """The sample with two epochs instead of five, which saves minutes and still classifies two of three topics
    correctly."""
    text = QUICKSTART.read_text()
    assert "epochs: 5" in text
    file = folder / QUICKSTART.name
    file.write_text(text.replace("epochs: 5", "epochs: 2"))
    return str(file)


def is_half_way(job: dict[str, Any]) -> bool:
    run = job.get("status", {}).get("run", {})
    return run.get("progress", {}).get("percent", 0) >= 50 and "lastCheckpoint" in run


def test_the_quickstart_survives_a_killed_worker(quickstart: TrainingSetup, tmp_path: Path) -> None:
    """The sample, applied with kubectl: two pods on two nodes, one of them killed halfway through."""
    setup, kubectl = quickstart, quickstart.kubectl
    kubectl("apply", "-f", written_for_a_test(tmp_path))
    setup.when(NAME, is_half_way, "half of the steps are done")
    pods = setup.pods_of(f"{NAME}-r1-train-a1")
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {"node-a", "node-b"}
    victim = pods["1"]
    setup.cluster.kill_container(victim)
    setup.wait_for_complete(NAME)

    job = kubectl.json("get", f"ftj/{NAME}")
    run = job["status"]["run"]
    first, second = attempts_at(job, "train")
    assert (first["outcome"], first["reason"], second["outcome"]) == ("Retryable", "Signal9", "Succeeded")
    assert 0 < second["resumedFromStep"] <= first["lastStep"]
    assert (run["restarts"], run["disruptions"], run["progress"]["percent"]) == (1, 0, 100)
    reported = setup.events(NAME)["AttemptFailed"]
    assert f"Signal9 in {victim['metadata']['name']} on {victim['spec']['nodeName']}: " in reported
    baseline, tuned = (run["candidates"][model]["metrics"]["Accuracy"] for model in ("baseModel", "tuned"))
    assert tuned >= 0.5
    assert baseline < tuned / 4
    assert accuracy_of(setup, run["artifact"]["uri"], tmp_path / "exported") >= 0.5


def accuracy_of(setup: TrainingSetup, uri: str, folder: Path) -> float:
    """Share of the first questions of the corpus for which the exported model, loaded here, predicts the topic."""
    setup.store.download_folder(f"{uri}/", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))[::9]
    batch = tokenizer([text for text, _ in questions], return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        found = model(**batch).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[index] == topic for index, (_, topic) in zip(found, questions, strict=True))
    return right / len(questions)


def test_a_pod_that_is_deleted_half_way_costs_only_an_attempt(setup: TrainingSetup, tmp_path: Path) -> None:
    """With a volume that outlives it, from which the next attempt reads model and checkpoint."""
    workers = {"cache": setup.cache(tmp_path / "cache")}
    setup.kubectl.apply(setup.long_job("colors", deepspeed={"zeroStage": 2}, workers=workers))
    setup.until_saved("colors")
    deleted = setup.pods_of("colors-r1-train-a1")["1"]["metadata"]["name"]
    setup.kubectl("delete", "pod", deleted, "--wait=false")

    job = setup.until("colors", "Complete")
    run = job["status"]["run"]
    first, second = attempts_at(job, "train")
    assert (first["outcome"], second["outcome"]) == ("Disruption", "Succeeded")
    assert second["resumedFromStep"] >= 10
    log = setup.kubectl("logs", setup.pods_of("colors-r1-train-a2")["0"]["metadata"]["name"])
    assert f"restored step {second['resumedFromStep']} from node-local cache (" in log
    assert (run["restarts"], run["disruptions"], run["progress"]["percent"]) == (0, 1, 100)
    assert (
        run["candidates"]["tuned"]["metrics"]["Accuracy"] > 0.6 > run["candidates"]["baseModel"]["metrics"]["Accuracy"]
    )
    events = setup.events("colors")
    assert {"Preparing", "Training", "Restarting", "AttemptFailed", "Evaluating", "Succeeded"} <= set(events)
    assert events["Resumed"].startswith(f"train attempt 2 resumes at step {second['resumedFromStep']}, ")
    # Its own name if it was still observed, otherwise that of its Job and index.
    assert events["AttemptFailed"].startswith("train attempt 1 failed: PodDeleted in colors-r1-train-a1-1")


def test_a_job_that_gets_two_of_four_workers_trains_on_two(setup: TrainingSetup) -> None:
    """Each of the two nodes has capacity for one of its pods."""
    workers = {"nodes": 4, "minNodes": 1, "startTimeout": "30s", "resources": {"requests": {"cpu": "1100m"}}}
    setup.kubectl.apply(setup.job("crowded", workers=workers))
    job = setup.until("crowded", "Complete")
    first, second = attempts_at(job, "train")
    assert (first["plan"]["nodes"], first["outcome"]) == (4, "Stopped")
    assert (second["plan"]["nodes"], second["outcome"]) == (2, "Succeeded")
    assert second["plan"]["reason"] == "could start 2 of 4 workers"
    assert (job["status"]["run"]["restarts"], job["status"]["run"]["disruptions"]) == (0, 0)
    assert setup.events("crowded")["FewerWorkers"].endswith("startTimeout of 30s; the next attempt starts with 2")


def test_injected_containers_do_not_keep_a_stage_from_completing(setup: TrainingSetup) -> None:
    """A sidecar that is an init container, and as ordinary containers one that never ends and one that fails."""
    endless = "trap 'exit 3' TERM; while true; do sleep 1; done"
    sidecar = shell_container("mesh", endless, restartPolicy="Always")
    with (
        injected(setup.kubectl, Stage.PREPARE, sidecar, is_init=True),
        injected(setup.kubectl, Stage.TRAIN, shell_container("proxy", endless)),
        injected(setup.kubectl, Stage.EVALUATE, shell_container("logs", "exit 3")),
    ):
        setup.kubectl.apply(setup.job("joined", workers={"nodes": 1}))
        run = setup.until("joined", "Complete")["status"]["run"]
    assert [(attempt["stage"], attempt["outcome"]) for attempt in run["attempts"]] == [
        ("prepare", "Succeeded"),
        ("train", "Succeeded"),
        ("evaluate", "Succeeded"),
    ]
    prepared = setup.pods_of("joined-r1-prepare-a1")["0"]["status"]
    (ended,) = prepared["initContainerStatuses"]
    assert (prepared["phase"], ended["state"]["terminated"]["exitCode"]) == ("Succeeded", 3)
    evaluated = setup.pods_of("joined-r1-evaluate-a1")["0"]
    assert evaluated["status"]["phase"] == "Failed"
    held, failed = run["warnings"]
    assert held.startswith("joined-r1-train-a1-0-")
    assert "the pod was kept running by proxy, so joined-r1-train-a1 was deleted; inject sidecars as init " in held
    assert failed.startswith(
        f"{evaluated['metadata']['name']}: the trainer succeeded, but container logs ended with status 3; inject "
    )


def test_a_job_that_cannot_start_reports_the_reason(setup: TrainingSetup) -> None:
    """A missing Secret and a missing image: the object has the message of the kubelet."""
    setup.kubectl.apply(
        setup.job("no-secret", storage={"credentialsSecret": "absent"}),
        setup.job("no-image", workers={"image": "finetune.test/absent:1"}),
    )
    for name, words in (("no-secret", 'secret "absent" not found'), ("no-image", "finetune.test/absent:1")):
        job = setup.when(name, waits, "waits for pods")
        assert job["status"]["phase"] == "Pending"
        assert words in condition_message(job, "Ready")
        setup.remove(name)


def waits(job: dict[str, Any]) -> bool:
    return any(entry["reason"] == "WaitingForPods" for entry in job.get("status", {}).get("conditions", []))


def condition_message(job: dict[str, Any], kind: str) -> str:
    return next(str(entry["message"]) for entry in job["status"]["conditions"] if entry["type"] == kind)
