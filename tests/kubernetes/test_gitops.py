"""What GitOps tools see of a job: no difference after an apply, its health, and the effect of every commit."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
from job_namespace import JobNamespace, is_training, run_scenario, training_ends
from operator_process import installation
from process_support import ROOT
from required import is_required
from simulated_kubelet import FOREVER, succeed
from statuses import make_status
from testcluster.access import Kubectl, condition
from testcluster.flux import Flux, message, reason, running_flux

NOW = "2026-01-01T12:00:00Z"
GUIDE = ROOT / "docs/gitops.md"
SAMPLES = sorted((ROOT / "manifests/samples").glob("*.yaml"))


@pytest.mark.parametrize("options", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_after_an_apply_no_object_differs(admin: Path, kubectl: Kubectl, options: tuple[str, ...]) -> None:
    """Otherwise Argo CD would report it as OutOfSync, and Flux would apply it again and again."""
    assert admin, "the CRD is installed"
    files = ["-f", ",".join(map(str, SAMPLES))]
    applied = kubectl("apply", *options, *files).splitlines()
    assert len(set(applied)) == len(SAMPLES)
    done = kubectl.run("diff", *options, *files)
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


def is_settled_at(generation: int, *, before: Callable[[], None] = lambda: None) -> Callable[[Status], bool]:
    """Whether a generation has its result; `before` is called whenever it has none yet."""

    def holds(status: Status) -> bool:
        if status.phase.is_terminal and status.observed_generation == generation:
            return True
        before()
        return False

    return holds


NAME = "topic-classifier"
OVERLAY = "overlays/production"
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


@pytest.fixture
def repository(kubectl: Kubectl, tmp_path: Path) -> Repository:
    """A repository whose overlay applies to the test's namespace. Nothing is committed yet."""
    repository = Repository(tmp_path / "models")
    shutil.copytree(GITOPS, repository.folder)
    overlay = repository.folder / OVERLAY / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("ml-production", kubectl.namespace))
    repository.git("init", "--quiet")
    return repository


@dataclass(frozen=True)
class KubectlApply:
    """A pipeline with `kubectl apply`. It reports nothing about the health of what it has applied."""

    kubectl: Kubectl
    repository: Repository

    def apply(self, revision: str) -> None:
        self.repository.git("checkout", "--quiet", "--detach", revision)
        overlay = str(self.repository.folder / OVERLAY)
        self.kubectl("apply", "--prune", "--applyset=configmaps/models", "-k", overlay)

    def check_waits(self, revision: str) -> None:
        """Check nothing."""

    def check_result(self, revision: str, verdict: str) -> None:
        """Check nothing."""


@dataclass(frozen=True)
class FluxApply:
    """Flux with the objects of manifests/gitops/flux, whose Kustomization has `wait` and `healthCheckExprs`."""

    flux: Flux
    repository: Repository

    def apply(self, revision: str) -> None:
        self.flux.publish(self.repository.folder, revision)
        self.flux.until_applied(revision)

    def check_waits(self, revision: str) -> None:
        found = self.flux.read()
        assert (condition(found, "Ready"), condition(found, "Healthy")) == ("Unknown", "Unknown")
        assert message(found, "Healthy").startswith(f"Running health checks for revision main@sha1:{revision} ")

    def check_result(self, revision: str, verdict: str) -> None:
        expected = {
            "Current": ("True", "ReconciliationSucceeded", f"Applied revision: main@sha1:{revision}"),
            "Failed": ("False", "HealthCheckFailed", f"failed early due to stalled resources: {self.listed('Failed')}"),
        }
        ready, why, end = expected[verdict]
        found = self.flux.until_result(revision)
        assert (condition(found, "Ready"), reason(found)) == (ready, why)
        assert message(found).endswith(end)

    def listed(self, status: str) -> str:
        """The job in a message about objects that are not Current."""
        return f"[FineTuneJob/{self.flux.namespace}/{NAME} status: '{status}']"


@pytest.fixture
def kubectl_apply(kubectl: Kubectl, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> KubectlApply:
    monkeypatch.setenv("KUBECTL_APPLYSET", "true")
    return KubectlApply(kubectl, repository)


def flux_manifests() -> list[Any]:
    """The GitRepository and the Kustomization of manifests/gitops/flux."""
    return list(yaml.safe_load_all((GITOPS / "flux/production.yaml").read_text()))


@pytest.fixture
def flux_apply(flux_program: Path, kubectl: Kubectl, repository: Repository, tmp_path: Path) -> Iterator[FluxApply]:
    with running_flux(kubectl, flux_program, tmp_path, flux_manifests()) as flux:
        yield FluxApply(flux, repository)


@pytest.fixture
def tenant_apply(flux_program: Path, kubectl: Kubectl, repository: Repository, tmp_path: Path) -> Iterator[FluxApply]:
    """Flux with the permissions of an account that may edit the namespace, and with kstatus instead of expressions."""
    kubectl("create", "serviceaccount", "editor")
    role = installation()["ClusterRole", "finetune-operator-edit"]
    # Its rules only: the role itself would be added to the roles of all tests.
    kubectl.apply(role | {"kind": "Role", "metadata": {"name": "jobs"}})
    for name, reference in (("jobs", "--role=jobs"), ("others", "--clusterrole=edit")):
        kubectl("create", "rolebinding", name, reference, f"--serviceaccount={kubectl.namespace}:editor")
    source, kustomization = flux_manifests()
    del kustomization["spec"]["healthCheckExprs"]
    kustomization["spec"]["serviceAccountName"] = "editor"
    with running_flux(kubectl, flux_program, tmp_path, [source, kustomization]) as flux:
        yield FluxApply(flux, repository)


needs_flux = pytest.mark.skipif(
    not is_required("flux"), reason="building kustomize-controller takes minutes; `make test-flux` does"
)


@pytest.mark.parametrize(
    "fixture",
    [
        pytest.param("kubectl_apply", id="kubectl"),
        pytest.param("flux_apply", id="flux", marks=needs_flux),
        pytest.param("tenant_apply", id="flux-tenant", marks=needs_flux),
    ],
)
def test_every_commit_of_a_repository_has_its_effect(
    admin: Path,
    kubectl: Kubectl,
    health_tools: HealthTools,
    repository: Repository,
    request: pytest.FixtureRequest,
    fixture: str,
) -> None:
    tool: KubectlApply | FluxApply = request.getfixturevalue(fixture)
    hashes = []
    for commit in COMMITS:
        commit.change(repository)
        hashes.append(repository.commit(commit.message))
    assert len(set(hashes)) == len(COMMITS)

    async def scenario(world: JobNamespace) -> None:
        world.kubelet.scripts[NAME] = succeed
        job = world.reconciled(NAME)
        known: set[str] = set()
        generations = []
        for commit, revision in zip(COMMITS, hashes, strict=True):
            tool.apply(revision)
            generations.append((await world.read(NAME))["metadata"]["generation"])
            status = await job.until(is_settled_at(generations[-1], before=partial(tool.check_waits, revision)))
            started = [entry for entry in status.run.attempts if entry.job_name not in known]
            (reported,) = health_tools.report([await world.read(NAME)])
            assert (commit.message, status.run.number, tuple(entry.stage for entry in started), status.phase) == (
                commit.message,
                commit.run,
                commit.started,
                commit.phase,
            )
            assert reported.verdicts == commit.verdicts
            tool.check_result(revision, commit.verdicts.flux)
            known |= {entry.job_name for entry in started}
        assert set(await world.jobs()) == known, "no other attempt was started"
        assert generations == [1, 2, 2, 3, 4, 5, 6], "a comment does not change the object"
        assert (status.newest_run, [past.number for past in status.history]) == (3, [1, 3])

        repository.remove_job()
        removed = repository.commit("Remove the job")
        tool.apply(removed)
        tool.check_result(removed, "Current")
        assert kubectl.json("get", "finetunejobs")["items"] == []
        assert kubectl("get", "serviceaccount", "trainer", "-o", "name").strip() == "serviceaccount/trainer"

    run_scenario(admin, kubectl.namespace, scenario)


@needs_flux
def test_flux_applies_a_commit_while_a_job_trains(admin: Path, kubectl: Kubectl, flux_apply: FluxApply) -> None:
    repository = flux_apply.repository
    first = repository.commit("Fine-tune the topic classifier")
    repository.edit("2e-4", "1e-4")
    second = repository.commit("Lower the learning rate")

    async def scenario(world: JobNamespace) -> None:
        world.kubelet.scripts[NAME] = training_ends(FOREVER)
        job = world.reconciled(NAME)
        flux_apply.apply(first)
        await job.until(is_training)
        flux_apply.check_waits(first)
        flux_apply.apply(second)
        messages = [event["message"] for event in kubectl.json("get", "events")["items"]]
        canceled = "Health checks canceled due to new reconciliation triggered by GitRepository/"
        assert [one for one in messages if one.startswith(canceled)]
        world.kubelet.scripts[NAME] = succeed
        status = await job.until(is_settled_at(2))
        assert (status.phase, status.run.number) == (Phase.SUCCEEDED, 2)
        flux_apply.check_result(second, "Current")

    run_scenario(admin, kubectl.namespace, scenario)


@needs_flux
def test_a_timeout_of_flux_does_not_stop_a_training(admin: Path, kubectl: Kubectl, flux_apply: FluxApply) -> None:
    flux = flux_apply.flux
    # The shortest timeout that Flux accepts.
    kubectl("patch", flux.resource, "--type=merge", '--patch={"spec": {"timeout": "30s", "retryInterval": "1s"}}')
    revision = flux_apply.repository.commit("Fine-tune the topic classifier")

    async def scenario(world: JobNamespace) -> None:
        world.kubelet.scripts[NAME] = training_ends(FOREVER)
        job = world.reconciled(NAME)
        flux_apply.apply(revision)
        await job.until(is_training)
        # In a thread, because the kubelet must report meanwhile.
        found = await asyncio.to_thread(flux.until, lambda found: condition(found, "Ready") == "False", "a timeout")
        assert reason(found) == "HealthCheckFailed"
        assert message(found).endswith(f"timeout waiting for: {flux_apply.listed('InProgress')}")
        world.kubelet.scripts[NAME] = succeed
        status = await job.until(is_settled_at(1))
        assert [entry.stage for entry in status.run.attempts] == list(ALL_STAGES), "no stage was repeated"
        flux.until(lambda found: condition(found, "Ready") == "True", "the model after another attempt")

    run_scenario(admin, kubectl.namespace, scenario)


@needs_flux
def test_flux_changes_nothing_without_a_commit_and_undoes_edits(
    admin: Path, kubectl: Kubectl, flux_apply: FluxApply
) -> None:
    flux = flux_apply.flux
    revision = flux_apply.repository.commit("Fine-tune the topic classifier")

    async def scenario(world: JobNamespace) -> None:
        world.kubelet.scripts[NAME] = succeed
        job = world.reconciled(NAME)
        flux_apply.apply(revision)
        await job.until(is_settled_at(1))
        flux_apply.check_result(revision, "Current")
        before = await world.read(NAME)
        request = flux.request_reconciliation()
        flux.until(lambda found: found["status"].get("lastHandledReconcileAt") == request, "has reconciled again")
        assert await world.read(NAME) == before

        edit = {"spec": {"suspend": True, "training": {"learningRate": 0.5}}}
        kubectl("patch", "finetunejob", NAME, "--type=merge", f"--patch={json.dumps(edit)}")
        flux.request_reconciliation()
        kubectl.until(f"finetunejob/{NAME}", lambda found: found["spec"] == before["spec"], within=60)
        status = await job.until(is_settled_at(3))
        assert (status.phase, status.run.number) == (Phase.SUCCEEDED, 1)
        flux_apply.check_result(revision, "Current")

    run_scenario(admin, kubectl.namespace, scenario)


@needs_flux
def test_flux_reports_the_reason_why_the_api_server_rejects_a_job(
    admin: Path, kubectl: Kubectl, flux_apply: FluxApply
) -> None:
    repository = flux_apply.repository
    valid = repository.commit("Fine-tune the topic classifier")
    repository.edit("epochs: 5", "epochs: many")
    forbidden = repository.commit("Train longer")
    flux_apply.apply(valid)
    before = kubectl.json("get", "finetunejob", NAME)
    flux_apply.apply(forbidden)
    found = flux_apply.flux.until_result(forbidden)
    assert (condition(found, "Ready"), reason(found)) == ("False", "ReconciliationFailed")
    assert "spec.training.epochs" in message(found)
    assert kubectl.json("get", "finetunejob", NAME) == before, "the last valid one stays"
