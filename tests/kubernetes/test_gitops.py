"""What GitOps tools see of a job: no difference after an apply, its health, and the effect of every commit."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from factories import make_job, merged
from finetune_api.constants import Phase, Reason, Stage
from finetune_api.rules import Violation
from finetune_api.stages import run_stages
from finetune_api.v1alpha1 import ArtifactStatus, Status
from finetune_api.validation import parse_job
from finetune_operator.policy import steps
from finetune_operator.policy.status import StatusNotes, blocked, rejected, status_after
from gitops_health import CURRENT, FAILED, GITOPS, HEALTH_KEY, IN_PROGRESS, SUSPENDED, HealthTools, Verdicts
from job_namespace import JobNamespace, run_scenario
from process_support import ROOT
from simulated_kubelet import succeed
from statuses import make_status
from testcluster.access import Kubectl

NOW = "2026-01-01T12:00:00Z"
GUIDE = ROOT / "docs/gitops.md"
SAMPLES = sorted((ROOT / "manifests/samples").glob("*.yaml"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("options", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_after_an_apply_the_object_does_not_differ(
    admin: Path, kubectl: Kubectl, sample: Path, options: tuple[str, ...]
) -> None:
    """Otherwise Argo CD would report it as OutOfSync, and Flux would apply it again and again."""
    assert admin, "the CRD is installed"
    kubectl("apply", *options, "-f", str(sample))
    done = kubectl.run("diff", *options, "-f", str(sample))
    assert (done.returncode, done.stdout) == (0, "")


TRAINED = make_status(run=1, stage="train", attempt=1, artifact=ArtifactStatus(uri="s3://b/model", digest="d"))
INVALID = (Violation("spec.training.epochs", "must be at least 1"),)


def after(step: steps.Step, *, generation: int = 2, **notes: Any) -> Status:
    return status_after(TRAINED, step, generation=generation, now=NOW, notes=StatusNotes(**notes))


SUCCEEDED = after(steps.Finish(True, Reason.SUCCEEDED, "done"))
HEALTH: dict[str, tuple[Status, Verdicts, str]] = {
    "new": (Status(observed_generation=-1), IN_PROGRESS, "not reconciled this version"),
    "changed": (
        SUCCEEDED.model_copy(update={"observed_generation": 1}),
        IN_PROGRESS,
        "not reconciled this version",
    ),
    "prepares": (after(steps.Start(Stage.PREPARE, 1)), IN_PROGRESS, "Preparing"),
    "trains": (after(steps.Watch(Stage.TRAIN, 1)), IN_PROGRESS, "Training"),
    "evaluates": (after(steps.Watch(Stage.EVALUATE, 1)), IN_PROGRESS, "Evaluating"),
    "waits for pods": (
        after(steps.Watch(Stage.TRAIN, 1), waiting="no node has a GPU"),
        IN_PROGRESS,
        "no node has a GPU",
    ),
    "waits for the next attempt": (after(steps.Watch(Stage.TRAIN, 1), pending="4 workers"), IN_PROGRESS, "4 workers"),
    "restarts": (after(steps.Backoff(5.0, NOW)), IN_PROGRESS, "next attempt at"),
    "retrains": (after(steps.Stop((), Reason.SPEC_CHANGED, "run 2 starts")), IN_PROGRESS, "run 2 starts"),
    "is being suspended": (after(steps.Stop(())), IN_PROGRESS, "saving a checkpoint"),
    "suspended": (after(steps.StaySuspended()), SUSPENDED, "set spec.suspend to false"),
    "succeeded": (SUCCEEDED, CURRENT, "done"),
    "the run of an earlier spec succeeds": (
        after(steps.Finish(True, Reason.SUCCEEDED, "done"), pending="the spec describes another run"),
        IN_PROGRESS,
        "another run",
    ),
    "failed": (after(steps.Finish(False, Reason.RESTARTS_EXHAUSTED, "too often")), FAILED, "too often"),
    "invalid": (rejected(Status(), INVALID, generation=2, now=NOW), FAILED, "must be at least 1"),
    "invalid after success": (rejected(SUCCEEDED, INVALID, generation=2, now=NOW), FAILED, "must be at least 1"),
    "invalid while it trains": (
        after(steps.Watch(Stage.TRAIN, 1), violations=INVALID),
        FAILED,
        "the run continues with the last valid spec",
    ),
    "invalid while suspended": (after(steps.StaySuspended(), violations=INVALID), FAILED, "must be at least 1"),
    "invalid when it succeeds": (
        after(steps.Finish(True, Reason.SUCCEEDED, "done"), violations=INVALID),
        FAILED,
        "must be at least 1",
    ),
    "cannot create": (
        blocked(TRAINED, Reason.CANNOT_CREATE, "exceeded quota", notes=StatusNotes(), generation=2, now=NOW),
        FAILED,
        "exceeded quota",
    ),
}
"""Status of an object of generation 2, verdicts about it, and part of the message."""


def job_in(state: str) -> dict[str, Any]:
    return merged(make_job(), {"metadata": {"generation": 2}, "status": HEALTH[state][0].written()})


def test_the_health_of_a_job_in_every_state(health_tools: HealthTools) -> None:
    found = dict(zip(HEALTH, health_tools.report(map(job_in, HEALTH)), strict=True))
    assert {name: reported.verdicts for name, reported in found.items()} == {
        name: verdicts for name, (_, verdicts, _) in HEALTH.items()
    }
    missing = [name for name, (*_, words) in HEALTH.items() if words not in found[name].argo_cd_message]
    assert missing == []
    assert "must be at least 1" in found["invalid while it trains"].kstatus_message
    assert {status.phase for status, *_ in HEALTH.values()} == set(Phase)


def test_the_expression_in_the_guide_accepts_a_suspended_job(health_tools: HealthTools) -> None:
    changed = yaml.safe_load(GUIDE.read_text().partition("```yaml\n")[2].partition("```")[0])
    jobs = map(job_in, ("suspended", "succeeded", "trains", "failed"))
    verdicts = [reported.verdicts.flux for reported in health_tools.report(jobs, **changed)]
    assert verdicts == ["Current", "Current", "InProgress", "Failed"]


def test_a_new_object_is_in_progress_before_the_operator_has_seen_it(
    admin: Path, kubectl: Kubectl, health_tools: HealthTools
) -> None:
    assert admin, "the CRD is installed"
    kubectl.apply(make_job("new", namespace=kubectl.namespace))
    (reported,) = health_tools.report([kubectl.json("get", "finetunejob", "new")])
    assert reported.verdicts == IN_PROGRESS


def test_a_change_is_in_progress_before_the_operator_has_seen_it(
    admin: Path, kubectl: Kubectl, health_tools: HealthTools
) -> None:
    assert admin, "the CRD is installed"
    kubectl.apply(make_job("changed", namespace=kubectl.namespace))
    job = kubectl.json("get", "finetunejob", "changed")
    status = SUCCEEDED.model_copy(update={"observed_generation": 1}).written()
    kubectl("replace", "--subresource=status", "-f", "-", stdin=json.dumps(job | {"status": status}))
    (before,) = health_tools.report([kubectl.json("get", "finetunejob", "changed")])
    kubectl.apply(make_job("changed", namespace=kubectl.namespace, training={"learningRate": 0.125}))
    (reported,) = health_tools.report([kubectl.json("get", "finetunejob", "changed")])
    assert (before.verdicts, reported.verdicts) == (CURRENT, IN_PROGRESS)


def test_the_health_check_is_merged_into_the_configuration_of_argo_cd(kubectl: Kubectl) -> None:
    present = {"timeout.reconciliation": "60s"}
    kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": present})
    kubectl("patch", "configmap", "argocd-cm", "--patch-file", str(GITOPS / "argo-cd/argocd-cm.yaml"))
    data = kubectl.json("get", "configmap", "argocd-cm")["data"]
    assert (set(data), data["timeout.reconciliation"]) == ({"timeout.reconciliation", HEALTH_KEY}, "60s")


@pytest.mark.parametrize("environment", ["staging", "production"])
def test_the_api_server_and_the_operator_accept_every_overlay(admin: Path, kubectl: Kubectl, environment: str) -> None:
    assert admin, "the CRD is installed"
    text = kubectl("kustomize", str(GITOPS / f"overlays/{environment}"))
    manifests = list(yaml.safe_load_all(text))
    assert {one["metadata"]["namespace"] for one in manifests} == {f"ml-{environment}"}
    for one in manifests:
        one["metadata"]["namespace"] = kubectl.namespace
    assert kubectl.refusal(*manifests) is None
    (job,) = [one for one in manifests if one["kind"] == "FineTuneJob"]
    assert parse_job(job).spec.output.uri == f"s3://models/{environment}/topic-classifier"


@dataclass(frozen=True)
class Commit:
    """A commit and its effect in the cluster."""

    message: str
    change: Callable[["Repository"], object]
    run: int
    """Number of the current run."""
    started: tuple[Stage, ...]
    """Stages of the attempts that the commit starts."""
    phase: Phase
    verdicts: Verdicts


@dataclass(frozen=True)
class Repository:
    """A Git repository with manifests/gitops, whose overlay `production` is applied."""

    folder: Path

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def edit(self, old: str, new: str) -> None:
        path = self.folder / "base/job.yaml"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def remove_job(self) -> None:
        """Remove the job from the base, and its patch from the overlay."""
        self.git("rm", "--quiet", "base/job.yaml")
        for name, start in (("base", "  - job.yaml"), ("overlays/production", "patches:")):
            path = self.folder / name / "kustomization.yaml"
            path.write_text(path.read_text().partition(start)[0])

    def commit(self, message: str) -> str:
        """Commit all changes, and return the hash."""
        self.git("add", "--all")
        if self.git("status", "--porcelain"):
            self.git("commit", "--message", message)
        return self.git("rev-parse", "HEAD")


def replace(old: str, new: str) -> Callable[[Repository], object]:
    return lambda repository: repository.edit(old, new)


def is_settled_at(generation: int) -> Callable[[Status], bool]:
    return lambda status: status.phase.is_terminal and status.observed_generation == generation


ALL_STAGES = run_stages()
DONE, BROKEN = Phase.SUCCEEDED, Phase.INVALID
COMMITS = [
    Commit("Fine-tune the topic classifier", lambda _: None, 1, ALL_STAGES, DONE, CURRENT),
    Commit("Lower the learning rate", replace("2e-4", "1e-4"), 2, ALL_STAGES, DONE, CURRENT),
    Commit(
        "Explain the rate",
        replace("1e-4", "1e-4  # as in the paper"),
        2,
        (),
        DONE,
        CURRENT,
    ),
    Commit("Set the micro-batch", replace("Size: 16", "Size: 16\n    microBatchSize: 5"), 2, (), BROKEN, FAILED),
    Commit("Correct the micro-batch", replace("microBatchSize: 5", "microBatchSize: 4"), 2, (), DONE, CURRENT),
    Commit("Use the questions of February", replace("2026-01", "2026-02"), 3, ALL_STAGES, DONE, CURRENT),
    Commit("Revert", lambda repository: repository.git("revert", "--no-edit", "HEAD"), 2, (), DONE, CURRENT),
]
"""All commits but the last one, which removes the job."""


def test_every_commit_of_a_repository_has_its_effect(
    admin: Path, kubectl: Kubectl, health_tools: HealthTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECTL_APPLYSET", "true")
    repository = Repository(tmp_path / "models")
    shutil.copytree(GITOPS, repository.folder)
    overlay = repository.folder / "overlays/production/kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("ml-production", kubectl.namespace))
    repository.git("init", "--quiet")
    hashes = []
    for commit in COMMITS:
        commit.change(repository)
        hashes.append(repository.commit(commit.message))
    assert len(set(hashes)) == len(COMMITS)

    def apply(revision: str) -> None:
        repository.git("checkout", "--quiet", "--detach", revision)
        kubectl("apply", "--prune", "--applyset=configmaps/models", "-k", str(overlay.parent))

    async def scenario(world: JobNamespace) -> None:
        name = "topic-classifier"
        world.kubelet.scripts[name] = succeed
        job = world.reconciled(name)
        known: set[str] = set()
        generations = []
        for commit, revision in zip(COMMITS, hashes, strict=True):
            apply(revision)
            generations.append((await world.read(name))["metadata"]["generation"])
            status = await job.until(is_settled_at(generations[-1]))
            started = [entry for entry in status.run.attempts if entry.job_name not in known]
            (reported,) = health_tools.report([await world.read(name)])
            assert (commit.message, status.run.number, tuple(entry.stage for entry in started), status.phase) == (
                commit.message,
                commit.run,
                commit.started,
                commit.phase,
            )
            assert reported.verdicts == commit.verdicts
            known |= {entry.job_name for entry in started}
        assert set(await world.jobs()) == known, "no other attempt was started"
        assert generations == [1, 2, 2, 3, 4, 5, 6], "a comment does not change the object"
        assert (status.newest_run, [past.number for past in status.history]) == (3, [1, 3])

        repository.remove_job()
        apply(repository.commit("Remove the job"))
        assert kubectl.json("get", "finetunejobs")["items"] == []
        assert kubectl("get", "serviceaccount", "trainer", "-o", "name").strip() == "serviceaccount/trainer"

    run_scenario(admin, kubectl.namespace, scenario)
