"""The life cycle of a job with a real API server, Job controller and scheduler; only the pods are simulated."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import Phase, Stage
from finetune_api.progress import CommittedCheckpoint, Progress, TerminationMessage
from finetune_api.stages import run_stages
from finetune_api.v1alpha1 import Status
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.errors import ApiError
from job_namespace import JOBS, JobNamespace, in_phase, is_training, run_scenario, training_ends
from reconciled_job import Fault
from simulated_kubelet import FOREVER, PodEnd, succeed
from testcluster.access import Kubectl

pytestmark = pytest.mark.usefixtures("recorded_statuses_are_understood")


def condition(status: Status, kind: str) -> tuple[str, str] | None:
    """Status and reason."""
    return next(((entry.status, str(entry.reason)) for entry in status.conditions if entry.type == kind), None)


def test_a_job_goes_through_its_stages(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("well")
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert [(entry.stage, entry.outcome) for entry in status.run.attempts] == [
            (Stage.PREPARE, "Succeeded"),
            (Stage.TRAIN, "Succeeded"),
            (Stage.EVALUATE, "Succeeded"),
        ]
        assert status.run.artifact is not None
        assert await job.children() == sorted(
            [f"{kind}/well-r1-{stage}-a1" for kind in ("configmaps", "jobs") for stage in run_stages()]
            + ["services/well-r1-train-a1"]
        )
        before = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == before, "a second pass on the same world writes nothing"

    run_scenario(admin, namespace, scenario)


@pytest.mark.parametrize(
    ("ends", "phase", "outcomes", "restarts"),
    [
        ([PodEnd(65)], Phase.FAILED, ["Permanent"], 0),
        ([PodEnd(70)], Phase.SUCCEEDED, ["Retryable", "Succeeded"], 1),
        ([PodEnd(70), PodEnd(137), PodEnd(1)], Phase.FAILED, ["Retryable"] * 3, 3),
        ([PodEnd(137, disrupted=True)], Phase.SUCCEEDED, ["Disruption", "Succeeded"], 0),
        ([PodEnd(75)], Phase.SUCCEEDED, ["Disruption", "Succeeded"], 0),
    ],
    ids=["permanent", "once", "too often", "evicted", "stopped"],
)
def test_a_failed_attempt_is_classified(
    admin: Path, namespace: str, ends: list[PodEnd], phase: Phase, outcomes: list[str], restarts: int
) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("falls", training_ends(*ends), restart={"maxRestarts": 2})
        status = await job.until(in_phase(Phase.SUCCEEDED, Phase.FAILED), within=90)
        assert status.phase is phase
        assert [entry.outcome for entry in status.run.attempts if entry.stage is Stage.TRAIN] == outcomes
        assert status.run.restarts == restarts

    run_scenario(admin, namespace, scenario)


def test_a_suspended_job_saves_and_resumes(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("rests", training_ends(FOREVER))
        await job.until(is_training)
        await world.change("rests", suspend=True)
        status = await job.until(in_phase(Phase.SUSPENDED))
        assert (status.run.restarts, status.run.disruptions) == (0, 0)
        assert not [name for name in await job.children() if "train" in name]
        await world.change("rests", suspend=False)
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert [entry.number for entry in status.run.attempts if entry.stage is Stage.TRAIN] == [1, 2]

    run_scenario(admin, namespace, scenario)


def test_a_sidecar_does_not_keep_a_stage_from_completing(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        world.kubelet.sidecars["joined"] = "istio-proxy"
        job = await world.create("joined", training_ends(PodEnd(70)))
        job.clock = lambda: datetime.now(UTC) + timedelta(seconds=30)
        status = await job.until(in_phase(Phase.SUCCEEDED), within=120)
        assert [(entry.stage, entry.outcome) for entry in status.run.attempts] == [
            (Stage.PREPARE, "Succeeded"),
            (Stage.TRAIN, "Retryable"),
            (Stage.TRAIN, "Succeeded"),
            (Stage.EVALUATE, "Succeeded"),
        ]
        assert status.run.restarts == 1
        assert status.run.artifact is not None
        assert "kept running by istio-proxy, so joined-r1-prepare-a1 was deleted" in status.run.warnings[0]
        while [name for name in await job.children() if name.startswith("jobs/")]:
            await job.step()
            await asyncio.sleep(0.5)
        assert job.last is not None
        assert job.last.status.run.attempts == status.run.attempts, "the deletions change no outcome"

    run_scenario(admin, namespace, scenario)


async def admit(world: JobNamespace, name: str, *, suspend: bool = False) -> None:
    """Change only `spec.suspend` of a Job, as Kueue does to admit it, or to evict it."""
    path = f"/apis/batch/v1/namespaces/{world.namespace}/jobs/{name}"
    await world.server.request("PATCH", path, {"spec": {"suspend": suspend}})


def test_a_job_waits_in_its_queue_and_continues_after_an_eviction(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("queued", training_ends(FOREVER), workers={"nodes": 2, "queue": "team"})
        status = await job.until(lambda status: condition(status, "Ready") == ("False", "Queued"))
        await job.step()
        spec = (await world.jobs())["queued-r1-train-a1"]
        assert (spec["suspend"], status.phase) == (True, Phase.PENDING)
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/queued-r1-train-a1"
        labels = (await world.server.request("GET", path))["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "team"
        assert job.last is not None
        (ready,) = [one for one in job.last.status.conditions if one.type == "Ready"]
        assert ready.message.startswith("queued-r1-train-a1 waits in the queue team: Kueue has not reported a reason")
        before = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == before, "it is not resumed, and a second pass writes nothing"

        await admit(world, "queued-r1-train-a1")
        await job.until(is_training)
        # An attempt that is evicted before a pod has run waits in the queue again.
        await job.until(lambda status: status.run.attempts[-1].running_time is not None)
        assert job.last.status.run.attempts[-1].admitted_time is not None
        await admit(world, "queued-r1-train-a1", suspend=True)
        status = await job.until(lambda status: status.run.attempts[-1].number == 2)
        world.kubelet.scripts["queued"] = succeed
        assert status.run.attempts[-2].outcome == "Stopped"
        status = await job.until(lambda status: condition(status, "Ready") == ("False", "Queued"))
        assert (await world.jobs())["queued-r1-train-a2"]["suspend"] is True

        await world.change("queued", suspend=True)
        await job.until(in_phase(Phase.SUSPENDED))
        await world.change("queued", suspend=False)
        await job.until(lambda status: condition(status, "Ready") == ("False", "Queued"))
        await admit(world, "queued-r1-train-a3")
        status = await job.until(in_phase(Phase.SUCCEEDED))
        trainings = [entry.outcome for entry in status.run.attempts if entry.stage is Stage.TRAIN]
        assert trainings == ["Stopped", "Stopped", "Succeeded"]
        assert (status.run.restarts, status.run.disruptions) == (0, 0)

    run_scenario(admin, namespace, scenario)


WORKLOADS = "workloads.kueue.x-k8s.io"


def test_the_message_of_kueues_workload_says_why_a_job_waits(admin: Path, namespace: str, kubectl: Kubectl) -> None:
    """Kueue writes it; without Kueue, a test can create the same object."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": "Workload", "plural": "workloads", "singular": "workload", "listKind": "WorkloadList"}
    group = {"group": "kueue.x-k8s.io", "scope": "Namespaced", "names": names, "versions": [version]}
    kind = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    # Not applied: a cluster with Kueue must keep its own.
    kubectl("create", "--filename=-", stdin=json.dumps(kind | {"metadata": {"name": WORKLOADS}, "spec": group}))
    message = "LocalQueue team doesn't exist"

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("unknown-queue", workers={"queue": "team"})
        await job.until(lambda status: condition(status, "Ready") == ("False", "Queued"))
        path = f"/apis/batch/v1/namespaces/{namespace}/jobs/unknown-queue-r1-train-a1"
        uid = (await world.server.request("GET", path))["metadata"]["uid"]
        conditions = [{"type": "QuotaReserved", "status": "False", "reason": "Inadmissible", "message": message}]
        metadata = {"name": "job-unknown-queue", "labels": {"kueue.x-k8s.io/job-uid": uid}}
        workload = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "metadata": metadata}
        kubectl.apply(workload | {"status": {"conditions": conditions}})
        await job.until(
            lambda status: any(one.type == "Ready" and one.message.endswith(message) for one in status.conditions)
        )

    try:
        kubectl("wait", "--for=condition=Established", f"crd/{WORKLOADS}", "--timeout=30s")
        run_scenario(admin, namespace, scenario)
    finally:
        kubectl("delete", f"crd/{WORKLOADS}")


@pytest.mark.parametrize("stop", [{"suspend": True}, {"budget": {"deadline": "1s"}}], ids=["suspended", "deadline"])
def test_a_running_attempt_can_be_stopped_while_the_spec_is_invalid(
    admin: Path, namespace: str, stop: dict[str, object]
) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("typo", training_ends(FOREVER))
        await job.until(is_training)
        await world.change("typo", training={"microBatchSize": 5})
        status = await job.until(lambda status: condition(status, "Accepted") == ("False", "InvalidSpec"))
        assert (status.phase, status.observed_generation) == (Phase.TRAINING, 2)
        calls = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == calls, "a second pass on the same world writes nothing"
        await world.change("typo", **stop)
        status = await job.until(in_phase(Phase.SUSPENDED, Phase.INVALID))
        assert (status.run.attempts[-1].outcome, "typo-r1-train-a1" in await world.jobs()) == ("Stopped", False)
        assert condition(status, "Accepted") == ("False", "InvalidSpec")
        world.kubelet.scripts["typo"] = succeed
        await world.change("typo", training={"microBatchSize": 4}, suspend=False, budget={"deadline": "1h"})
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert (status.run.number, status.run.restarts) == (1, 0)
        assert "InvalidSpec" in await world.event_reasons("typo")

    run_scenario(admin, namespace, scenario)


def test_an_ending_attempt_is_reconciled_more_often(admin: Path, namespace: str, kubectl: Kubectl) -> None:
    """The final message of rank 0 and the next attempt wait for it."""

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("ending", training_ends(FOREVER))
        await job.until(is_training)
        job.settings = replace(job.settings, progress_seconds=30.0)
        await job.step()
        assert job.last is not None
        assert job.last.requeue_after == 30.0
        world.kubelet.dead = True
        kubectl("delete", "pod", "--selector=finetune.dev/stage=train", "--wait=false")
        await job.step()
        assert job.last.requeue_after == 1.0

    run_scenario(admin, namespace, scenario)


def test_a_changed_spec_is_a_new_run(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("changes", training_ends(FOREVER))
        await job.until(is_training)
        world.kubelet.scripts["changes"] = succeed
        await world.change("changes", training={"learningRate": 1e-5})
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert status.run.number == 2
        assert {entry.job_name.split("-")[1] for entry in status.run.attempts} == {"r2"}

    run_scenario(admin, namespace, scenario)


def test_a_spec_that_changes_before_the_first_status_is_not_attributed_to_existing_children(
    admin: Path, namespace: str
) -> None:
    """A ConfigMap, a Job and an Event exist; the operator crashes before it writes status."""

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("hasty", fault=Fault("crash before", at=3))
        await job.step()
        assert job.crashes == 1
        assert list(await world.jobs()) == ["hasty-r1-prepare-a1"]
        await world.change("hasty", training={"learningRate": 1e-5})
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert status.run.number == 2
        assert {entry.job_name.split("-")[1] for entry in status.run.attempts} == {"r2"}

    run_scenario(admin, namespace, scenario)


def test_a_change_for_the_next_attempt_does_not_stop_the_run_and_is_reported(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("grows", training_ends(FOREVER), workers={"nodes": 1})
        await job.until(is_training)
        await world.change("grows", workers={"nodes": 2}, deepspeed={"zeroStage": 3}, training={"microBatchSize": 2})
        status = await job.until(lambda status: status.observed_generation == 2)
        assert condition(status, "Reconciling") == ("True", "NextAttempt")
        assert (status.run.number, status.phase) == (1, Phase.TRAINING)
        assert "NextAttempt" in await world.event_reasons("grows")
        await world.change("grows", suspend=True)
        await job.until(in_phase(Phase.SUSPENDED))
        await world.change("grows", suspend=False)
        await job.until(lambda status: status.phase is Phase.RESTARTING)
        assert (await world.jobs())["grows-r1-train-a2"]["parallelism"] == 2
        config = await world.config("grows-r1-train-a2")
        assert (config.spec.deepspeed.zero_stage, config.batch.micro_size, config.batch.accumulation) == (3, 2, 4)
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert condition(status, "Reconciling") == ("False", "Succeeded")

    run_scenario(admin, namespace, scenario)


def test_a_job_that_lacks_workers_starts_with_fewer_and_requests_all_at_the_next_restart(
    admin: Path, namespace: str
) -> None:
    def script(stage: Stage, attempt: int, _index: int) -> PodEnd:
        if stage is not Stage.TRAIN:
            return PodEnd()
        return {1: FOREVER, 2: PodEnd(70, after=1.0)}.get(attempt, PodEnd())

    async def scenario(world: JobNamespace) -> None:
        world.kubelet.capacity["crowded"] = lambda stage, attempt, index: index < 3 or attempt > 2
        workers = {"nodes": 4, "minNodes": 1, "startTimeout": "3s"}
        job = await world.create("crowded", script, workers=workers)
        status = await job.until(lambda status: status.run.next_plan is not None)
        assert condition(status, "Ready") == ("False", "FewerWorkers")
        status = await job.until(in_phase(Phase.SUCCEEDED))
        trainings = [entry for entry in status.run.attempts if entry.stage is Stage.TRAIN]
        # Three workers cannot share 16 examples.
        plans = [entry.plan for entry in trainings if entry.plan is not None]
        assert [(plan.nodes, plan.micro_batch_size, plan.gradient_accumulation_steps) for plan in plans] == [
            (4, 4, 1),
            (2, 4, 2),
            (4, 4, 1),
        ]
        assert ["could start 2 of 4 workers" in plan.reason for plan in plans] == [False, True, False]
        assert [entry.outcome for entry in trainings] == ["Stopped", "Retryable", "Succeeded"]
        assert [(await world.jobs())[f"crowded-r1-train-a{number}"]["parallelism"] for number in (2, 3)] == [2, 4]
        assert (await world.event_reasons("crowded")).count("FewerWorkers") == 1
        assert (status.run.restarts, status.run.disruptions) == (1, 0)

    run_scenario(admin, namespace, scenario)


def test_the_grace_period_is_derived_from_the_last_save(admin: Path, namespace: str) -> None:
    """After an attempt with a save of 100 s, the pods of the next one get more than twice that."""
    saved = CommittedCheckpoint(step=4, uri="s3://b/c.json", time="2026-01-01T00:00:00Z", save_seconds=100.0)
    progress = Progress(stage="train", step=5, total_steps=10, last_checkpoint=saved)
    word = TerminationMessage(stage="train", exit_code=70, progress=progress).encode()

    def script(stage: Stage, attempt: int, _index: int) -> PodEnd:
        if stage is not Stage.TRAIN:
            return PodEnd()
        return PodEnd(70, message=word) if attempt == 1 else FOREVER

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("slow", script, workers={"nodes": 1})
        status = await job.until(lambda status: condition(status, "SafeToStop") is not None)
        assert condition(status, "SafeToStop") == ("True", "SaveFits")
        grace = {
            name: spec["template"]["spec"]["terminationGracePeriodSeconds"]
            for name, spec in (await world.jobs()).items()
        }
        assert grace == {"slow-r1-prepare-a1": 120, "slow-r1-train-a1": 120, "slow-r1-train-a2": 220}

    run_scenario(admin, namespace, scenario)


def test_fields_that_the_api_server_drops_are_reported(admin: Path, namespace: str, kubectl: Kubectl) -> None:
    """With a client that does not validate, kubectl's annotation of the applied object still has the field."""

    async def scenario(world: JobNamespace) -> None:
        manifest = make_job("misspelt", namespace=namespace, workers={"nodes": 1, "gpuPerNode": 8})
        kubectl("apply", "--validate=ignore", "-f", "-", stdin=json.dumps(manifest))
        job = world.reconciled("misspelt")
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert condition(status, "Accepted") == ("True", "UnknownFields")
        assert "spec.workers.gpuPerNode: unknown field; did you mean gpusPerNode?" in str(status.conditions)
        assert (await world.event_reasons("misspelt")).count("UnknownFields") == 1

    run_scenario(admin, namespace, scenario)


def test_a_job_beyond_its_deadline_fails_with_its_state_saved(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("late", training_ends(FOREVER), budget={"deadline": "8s"})
        status = await job.until(in_phase(Phase.FAILED))
        assert {entry.reason for entry in status.conditions if entry.type == "Failed"} == {"DeadlineExceeded"}
        world.kubelet.scripts["late"] = succeed
        await world.change("late", budget={"deadline": "1h"})
        assert (await job.until(in_phase(Phase.SUCCEEDED))).run.number == 1

    run_scenario(admin, namespace, scenario)


def test_a_failed_run_continues_only_after_a_correction(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("corrected", training_ends(PodEnd(80)), restart={"maxRestarts": 0})
        status = await job.until(in_phase(Phase.FAILED))
        assert condition(status, "Failed") == ("True", "RestartsExhausted")
        await world.change("corrected", suspend=True)
        status = await job.until(lambda status: status.observed_generation == 2)
        assert (status.phase, len(await world.jobs())) == (Phase.FAILED, 2)

        await world.change("corrected", suspend=False, deepspeed={"zeroStage": 3})
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert [(entry.stage, entry.number, entry.superseded_by_spec_change) for entry in status.run.attempts] == [
            (Stage.PREPARE, 1, None),
            (Stage.TRAIN, 1, True),
            (Stage.TRAIN, 2, None),
            (Stage.EVALUATE, 1, None),
        ]
        assert (status.run.number, status.run.restarts) == (1, 0)
        assert (await world.config("corrected-r1-train-a2")).spec.deepspeed.zero_stage == 3
        assert {"RestartsExhausted", "Restarting", "Succeeded"} <= set(await world.event_reasons("corrected"))

    run_scenario(admin, namespace, scenario)


def test_children_are_deleted_after_their_time_to_live_and_the_object_is_kept(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("short", ttlSecondsAfterFinished=1)
        await job.until(in_phase(Phase.SUCCEEDED))
        assert job.last is not None
        assert job.last.requeue_after == 1.0, "nothing but the clock brings a finished job back"
        async with asyncio.timeout(30):
            while await job.children():
                await job.step()
                await asyncio.sleep(0.1)
        status = await job.until(lambda status: status.run.children_removed is True)
        assert (status.phase, status.run.artifact is not None) == (Phase.SUCCEEDED, True)
        assert job.last.requeue_after is None

    run_scenario(admin, namespace, scenario)


def test_a_field_that_is_corrected_after_a_refused_job_reaches_its_pods(
    admin: Path, namespace: str, kubectl: Kubectl
) -> None:
    """The immutable ConfigMap was created before the Job was refused."""
    hard = {"count/jobs.batch": "0"}
    kubectl.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": hard}})
    kubectl.until("resourcequota/none", lambda quota: "hard" in quota.get("status", {}), within=60)

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("corrected")
        await job.step()
        assert job.last is not None
        ready = next(entry for entry in job.last.status.conditions if entry.type == "Ready")
        assert (ready.reason, await world.jobs()) == ("CannotCreate", {})
        assert (await world.config("corrected-r1-prepare-a1")).spec.training.micro_batch_size is None
        await world.change("corrected", training={"microBatchSize": 2})
        kubectl("delete", "resourcequota", "none")
        await job.until(in_phase(Phase.SUCCEEDED))
        assert (await world.config("corrected-r1-prepare-a1")).spec.training.micro_batch_size == 2

    run_scenario(admin, namespace, scenario)


def test_a_child_of_another_owner_is_reported_and_not_changed(admin: Path, namespace: str, kubectl: Kubectl) -> None:
    async def scenario(world: JobNamespace) -> None:
        stranger = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "taken-r1-prepare-a1"}}
        kubectl.apply(stranger)
        job = await world.create("taken")
        await job.step()
        assert job.last is not None
        ready = next(entry for entry in job.last.status.conditions if entry.type == "Ready")
        assert (ready.status, ready.reason) == ("False", "ChildConflict")
        assert "taken-r1-prepare-a1 exists and belongs to another owner" in ready.message
        before = len(job.server.calls)
        await job.step()
        assert [call for call in job.server.calls[before:] if "/configmaps" not in call] == []
        kubectl("delete", "configmap", "taken-r1-prepare-a1")
        await job.until(in_phase(Phase.SUCCEEDED))

    run_scenario(admin, namespace, scenario)


def promoted_below(loss: float) -> dict[str, Any]:
    return {"evaluation": {"promote": {"thresholds": [{"metric": "Loss", "max": loss}]}}}


ADAPTED = {"method": {"lora": {}}}
NOTHING: tuple[Stage, ...] = ()
ALL_STAGES = run_stages()
FINISHED_CHANGES = [
    pytest.param({}, {"training": {"epochs": 3}, "output": {"formats": ["Merged"]}}, 1, NOTHING, id="defaults"),
    pytest.param(
        {}, {"model": {"dtype": "Float32"}, "training": {"batching": "Padded"}}, 1, NOTHING, id="automatic values"
    ),
    pytest.param({}, {"evaluation": {"maxNewTokens": 65}}, 1, (Stage.EVALUATE,), id="sample answers"),
    pytest.param(
        {"model": {"task": "CausalLM"}, "data": {"format": "Chat"}},
        {"evaluation": {"prompts": ["Hello"]}},
        1,
        (Stage.EVALUATE,),
        id="sample prompt",
    ),
    pytest.param(promoted_below(9), promoted_below(8), 1, (Stage.EVALUATE,), id="promotion threshold"),
    pytest.param(ADAPTED, {"output": {"formats": ["Merged", "Adapter"]}}, 1, (Stage.EVALUATE,), id="export format"),
    pytest.param({}, {"output": {"formats": ["Merged", "Int8"]}}, 1, (Stage.EVALUATE,), id="quantized export"),
    pytest.param({}, {"workers": {"nodes": 1}, "checkpoint": {"keepLast": 4}}, 1, NOTHING, id="attempt"),
    pytest.param(
        {},
        {"restart": {"maxRestarts": 9}, "ttlSecondsAfterFinished": 9999, "historyLimit": 3, "reuse": "Never"},
        1,
        NOTHING,
        id="now",
    ),
    pytest.param({}, {"training": {"learningRate": 0.125}}, 2, ALL_STAGES, id="run"),
    pytest.param(
        {},
        {"training": {"learningRate": 0.25}, "evaluation": {"maxNewTokens": 66}},
        2,
        ALL_STAGES,
        id="run and evaluation",
    ),
    pytest.param(
        {"workers": {"nodes": 8}}, {"workers": {"nodes": 1, "gpusPerNode": 8}}, 1, NOTHING, id="no common batch"
    ),
    pytest.param({}, {"data": {"maxLength": 64}}, 2, ALL_STAGES, id="data"),
]


@pytest.mark.parametrize(("spec", "change", "number", "started"), FINISHED_CHANGES)
def test_a_change_of_a_finished_job_has_the_effect_of_its_scope(
    admin: Path, namespace: str, spec: dict[str, Any], change: dict[str, Any], number: int, started: tuple[Stage, ...]
) -> None:
    """A new run includes the prepare stage, which reuses the dataset of the previous run if its rows are the same."""

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("changed", **spec)
        before = await job.until(in_phase(Phase.SUCCEEDED))
        known = {entry.job_name for entry in before.run.attempts}
        await world.change("changed", **change)
        await job.step()
        after = await job.until(lambda status: status.phase is Phase.SUCCEEDED and status.observed_generation == 2)
        assert after.run.number == number
        assert tuple(entry.stage for entry in after.run.attempts if entry.job_name not in known) == started
        assert after.run.candidates == before.run.candidates
        assert [(past.number, past.result, past.artifact) for past in after.history] == (
            [] if number == 1 else [(1, "Succeeded", before.run.artifact)]
        )

    run_scenario(admin, namespace, scenario)


def test_a_reverted_change_starts_no_training(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("reverted")
        first = await job.until(in_phase(Phase.SUCCEEDED))
        await world.change("reverted", training={"learningRate": 0.125})
        await job.until(lambda status: status.phase is Phase.SUCCEEDED and status.run.number == 2)
        jobs = await world.jobs()
        await world.change("reverted", training={"learningRate": make_job()["spec"]["training"]["learningRate"]})
        after = await job.until(lambda status: status.phase is Phase.SUCCEEDED and status.observed_generation == 3)
        assert (after.run.number, after.run.artifact, after.newest_run) == (1, first.run.artifact, 2)
        assert await world.jobs() == jobs, "no attempt was started"
        await world.change("reverted", evaluation={"maxNewTokens": 65})
        await job.until(lambda status: status.phase is Phase.SUCCEEDED and status.observed_generation == 4)
        assert set(await world.jobs()) - set(jobs) == {"reverted-r1-evaluate-a2"}

    run_scenario(admin, namespace, scenario)


def test_a_change_that_is_reverted_while_the_new_run_trains_resumes_the_first_run(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("mistake", training_ends(FOREVER))
        await job.until(is_training)
        await world.change("mistake", training={"learningRate": 0.125})
        await job.until(lambda status: is_training(status) and status.run.number == 2)
        world.kubelet.scripts["mistake"] = succeed
        await world.change("mistake", training={"learningRate": make_job()["spec"]["training"]["learningRate"]})
        status = await job.until(in_phase(Phase.SUCCEEDED))
        trained = [entry.number for entry in status.run.attempts if entry.stage is Stage.TRAIN]
        assert (status.run.number, trained) == (1, [1, 2])
        assert [(past.number, past.result) for past in status.history] == [(2, "Superseded")]

    run_scenario(admin, namespace, scenario)


def test_with_update_policy_ignore_a_run_is_completed_before_the_next_one_starts(
    admin: Path, namespace: str, kubectl: Kubectl
) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("patient", training_ends(FOREVER), updatePolicy="Ignore")
        await job.until(is_training)
        await world.change("patient", training={"learningRate": 0.125}, workers={"env": [{"name": "A", "value": "b"}]})
        status = await job.until(lambda status: status.observed_generation == 2)
        assert (status.run.number, is_training(status), condition(status, "Reconciling")) == (
            1,
            True,
            ("True", "NextAttempt"),
        )
        calls = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == calls, "a second pass on the same world writes nothing"
        world.kubelet.scripts["patient"] = succeed
        kubectl("delete", "pod", "--selector=finetune.dev/stage=train", "--wait=false")
        status = await job.until(lambda status: status.run.number == 2)
        (past,) = status.history
        assert (past.result, [entry.number for entry in past.attempts if entry.stage is Stage.TRAIN]) == (
            "Succeeded",
            [1, 2],
        )
        assert (await world.config("patient-r1-train-a2")).spec.training.learning_rate == 0.0002
        (container,) = (await world.jobs())["patient-r1-train-a2"]["template"]["spec"]["containers"]
        assert {"name": "A", "value": "b"} in container["env"], "other fields are those of the changed object"
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert status.run.changes == ("spec.training.learningRate: 0.0002 -> 0.125",)

    run_scenario(admin, namespace, scenario)


def test_a_scheduled_time_starts_a_run_of_the_same_spec(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("nightly", schedule={"cron": "0 3 * * *"})
        first = await job.until(in_phase(Phase.SUCCEEDED))
        assert first.schedule is not None
        assert first.due_time == first.schedule.next_time
        calls = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == calls, "nothing happens before"
        job.clock = lambda: datetime.now(UTC) + timedelta(days=1)
        status = await job.until(lambda status: status.run.number == 2 and status.phase is Phase.SUCCEEDED)
        assert (status.run.trigger, [past.result for past in status.history]) == ("Schedule", ["Succeeded"])
        assert [entry.stage for entry in status.run.attempts] == list(ALL_STAGES)

    run_scenario(admin, namespace, scenario)


def test_changed_source_files_start_a_run_and_unchanged_ones_do_not(admin: Path, namespace: str) -> None:
    digests = {1: "first", 3: "first", 4: "second"}

    def script(stage: Stage, attempt: int, index: int) -> PodEnd:
        if stage is not Stage.POLL:
            return PodEnd()
        return PodEnd(source_digest=digests[attempt]) if attempt in digests else PodEnd(69)

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("follows", script, data={"poll": "1h"})
        await job.until(in_phase(Phase.SUCCEEDED))
        calls = len(job.server.calls)
        await job.step()
        assert len(job.server.calls) == calls, "nothing happens before"
        for number in (1, 2, 3):
            job.clock = lambda hours=number: datetime.now(UTC) + timedelta(hours=2 * hours)
            status = await job.until(lambda status, wanted=number: status.poll and status.poll.number == wanted)
            assert (status.run.number, status.phase, condition(status, "Reconciling")) == (
                1,
                Phase.SUCCEEDED,
                ("False", "Succeeded"),
            )
            assert status.poll is not None
            assert status.poll.message == ("exit 69" if number == 2 else "")
            await job.until(lambda status: status.due_time is not None)
            assert not [name for name in await world.jobs() if "poll" in name], "its Job was deleted"
        job.clock = lambda: datetime.now(UTC) + timedelta(hours=8)
        status = await job.until(lambda status: status.run.number == 2 and status.phase is Phase.SUCCEEDED)
        assert (status.run.trigger, [past.result for past in status.history]) == ("Data", ["Succeeded"])
        assert "NewRun" in await world.event_reasons("follows")

    run_scenario(admin, namespace, scenario)


def test_a_failed_evaluation_keeps_the_trained_model_in_status_and_can_be_repeated(admin: Path, namespace: str) -> None:
    def script(stage: Stage, attempt: int, index: int) -> PodEnd:
        return PodEnd(65) if stage is Stage.EVALUATE and attempt == 1 else PodEnd()

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("judged", script)
        status = await job.until(in_phase(Phase.FAILED))
        assert condition(status, "Failed") == ("True", "EvaluateFailed")
        assert condition(status, "ModelAvailable") == ("True", "Exported")
        assert status.run.artifact is not None
        ready = next(entry.message for entry in status.conditions if entry.type == "Ready")
        assert status.run.artifact.uri in ready
        await world.change("judged", evaluation={"baseModel": False})
        status = await job.until(in_phase(Phase.SUCCEEDED))
        assert [(entry.stage, entry.number) for entry in status.run.attempts if entry.stage is Stage.EVALUATE] == [
            (Stage.EVALUATE, 1),
            (Stage.EVALUATE, 2),
        ]
        assert status.run.number == 1

    run_scenario(admin, namespace, scenario)


def test_a_run_that_failed_under_an_operator_without_scopes_continues_after_a_change(
    admin: Path, namespace: str
) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("hopeless", training_ends(PodEnd(65)))
        status = await job.until(in_phase(Phase.FAILED))
        manifest = await world.read("hopeless")
        del manifest["status"]["run"]["failedSpecHash"]
        await world.server.request("PUT", f"{JOBS.format(namespace=namespace)}/hopeless/status", manifest)
        await job.step()
        assert job.last is not None
        assert job.last.status == status, "it stays as it is until the spec changes"
        world.kubelet.scripts["hopeless"] = succeed
        await world.change("hopeless", restart={"maxRestarts": 9})
        assert (await job.until(in_phase(Phase.SUCCEEDED))).run.number == 1

    run_scenario(admin, namespace, scenario)


@asynccontextmanager
async def any_status_allowed(server: ApiServer) -> AsyncIterator[None]:
    """The CRD without a schema of the status, as if an older version were installed."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
    installed = await server.request("GET", path)
    loose = json.loads(json.dumps(installed))
    schema = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    schema["status"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    await server.request("PUT", path, loose)
    try:
        yield
    finally:
        current = await server.request("GET", path)
        await server.request("PUT", path, {**current, "spec": installed["spec"]})


def test_a_status_in_the_flat_shape_of_earlier_versions_is_replaced_without_losing_the_run(
    admin: Path, namespace: str
) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("older", training_ends(FOREVER))
        status = await job.until(is_training)
        manifest = await world.read("older")
        flat = {**manifest["status"], **manifest["status"]["run"], "run": 1, "runHash": status.run.spec_hash}
        for name in ("number", "specHash", "display"):
            flat.pop(name, None)
        path = f"{JOBS.format(namespace=namespace)}/older/status"
        async with any_status_allowed(world.server), asyncio.timeout(30):
            while True:  # until the API server uses the CRD
                with suppress(ApiError):
                    await world.server.request("PUT", path, {**await world.read("older"), "status": flat})
                    break
                await asyncio.sleep(0.2)
        await asyncio.sleep(2.0)  # until it uses the CRD of this version again
        kept = (await world.read("older"))["status"]
        assert (kept["run"], kept["stage"], len(kept["attempts"])) == (1, "train", 2), "the API server pruned it"
        await job.step()
        assert job.last is not None
        assert job.last.status == status
        assert (await world.read("older"))["status"] == manifest["status"]

    run_scenario(admin, namespace, scenario)


def test_each_attempt_has_a_network_policy_that_selects_only_its_own_pods(admin: Path, namespace: str) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("guarded", training_ends(PodEnd(70), FOREVER))
        job.settings = replace(job.settings, operator_namespace="ops")
        await job.until(lambda status: status.run.attempts[-1].job_name == "guarded-r1-train-a2")
        found = await world.server.request("GET", f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")
        policies = {policy["metadata"]["name"]: policy["spec"] for policy in found["items"]}
        assert sorted(policies) == ["guarded-r1-prepare-a1", "guarded-r1-train-a1", "guarded-r1-train-a2"]
        selected: dict[str, set[str]] = {}
        async with asyncio.timeout(30):
            while not all(selected.get(name) for name in policies):  # the Job controller creates the pods
                pods = (await world.server.request("GET", f"/api/v1/namespaces/{namespace}/pods"))["items"]
                for name, spec in policies.items():
                    own = spec["podSelector"]["matchLabels"].items()
                    labels = [pod["metadata"]["labels"] for pod in pods]
                    selected[name] = {each["batch.kubernetes.io/job-name"] for each in labels if own <= each.items()}
                await asyncio.sleep(0.2)
        assert selected == {name: {name} for name in policies}
        peers = policies["guarded-r1-train-a2"]["ingress"][0]["from"]
        assert peers == [{"podSelector": policies["guarded-r1-train-a2"]["podSelector"]}]

    run_scenario(admin, namespace, scenario)
