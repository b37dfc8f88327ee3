"""The local cluster ends Jobs like the Job controller of Kubernetes; its pods are real processes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import CONFIG_KEY, Stage
from finetune_api.trainer_config import StorageSettings
from finetune_api.validation import parse_job
from finetune_operator.clusters.local import LocalCluster
from finetune_operator.errors import ClusterConflictError
from finetune_operator.manifests import JobKey, Manifest
from finetune_operator.observed import Observed, ObservedAttempt
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_stage
from finetune_operator.settings import GraceLimits, OperatorSettings

KEY = JobKey("default", "example")
DEADLINE_SECONDS = 30.0

WAITS_FOR_SIGTERM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open(os.environ["FINETUNE_SCRATCH"] + "/ready", "w").close()
time.sleep(60)
"""


def make_children(script: str, *, nodes: int = 2, attempt: int = 1, grace: int = 20) -> list[Manifest]:
    """The children of a train stage whose pods run a script instead of the trainer."""
    job = parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": KEY.name, "uid": "u1"},
            "spec": {
                "model": {"uri": "s3://bucket/model"},
                "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
                "training": {"learningRate": 2e-5},
                "workers": {"nodes": nodes},
                "output": {"uri": "s3://bucket/out"},
            },
        }
    )
    config = stage_config(job, 1, Stage.TRAIN, attempt, StorageSettings())
    children = list(render_stage(config, OperatorSettings(termination_grace=GraceLimits(grace))))
    children[-1]["spec"]["template"]["spec"]["containers"][0]["command"] = ["python", "-c", script]
    return children


class ClusterFixture:
    """A local cluster in a folder, and functions to wait for it."""

    def __init__(self, folder: Path) -> None:
        self.changed = asyncio.Event()
        self.folder = folder
        self.cluster = LocalCluster(folder, KEY, environ={"PATH": "/usr/bin:/bin"}, on_change=self.changed.set)

    async def start(self, script: str, **options: Any) -> None:
        for manifest in make_children(script, **options):
            await self.cluster.create_child(manifest)

    async def stage(self) -> ObservedAttempt | None:
        jobs = await self.cluster.list_jobs(KEY)
        pods = await self.cluster.list_pods(KEY, [job["metadata"]["name"] for job in jobs])
        stages = Observed.from_manifests("u1", jobs, pods).attempts
        return stages[-1] if stages else None

    async def ended(self) -> ObservedAttempt | None:
        await asyncio.wait_for(self.changed.wait(), DEADLINE_SECONDS)
        return await self.stage()

    async def ready(self, pods: int) -> None:
        async def all_ready() -> None:
            while len(list(self.folder.glob("jobs/*/*/pods/*/scratch/ready"))) < pods:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(all_ready(), DEADLINE_SECONDS)


def run_in_cluster(scenario: Callable[[ClusterFixture], Any], folder: Path) -> None:
    async def run() -> None:
        cluster = ClusterFixture(folder)
        try:
            await scenario(cluster)
        finally:
            await cluster.cluster.close()

    asyncio.run(run())


def test_a_job_is_complete_when_all_its_pods_are(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start("print('hello')")
        stage = await cluster.ended()
        assert stage is not None
        assert stage.succeeded
        assert [pod.exit_code for pod in stage.pods] == [0, 0]

    run_in_cluster(scenario, tmp_path)
    assert (tmp_path / "jobs/default/example/logs/example-r1-train-a1-1.log").read_text() == "hello\n"


def test_the_message_of_a_failed_pod_without_one_is_the_end_of_its_log(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        script = "print('x' * 5000)\nfor i in range(100): print(i)\nraise SystemExit(7)"
        await cluster.start(script, nodes=1)
        stage = await cluster.ended()
        assert stage is not None
        assert stage.pods[0].raw_message.split() == [str(number) for number in range(20, 100)]

    run_in_cluster(scenario, tmp_path)


def test_the_first_failed_pod_fails_the_job_and_the_others_are_terminated(tmp_path: Path) -> None:
    script = f"import os\nif os.environ['FINETUNE_NODE_RANK'] == '1': raise SystemExit(65)\n{WAITS_FOR_SIGTERM}"

    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start(script)
        stage = await cluster.ended()
        assert stage is not None
        assert stage.failed
        assert stage.pods[1].exit_code == 65
        assert stage.pods[0].exit_code in {75, 143}

    run_in_cluster(scenario, tmp_path)


def test_a_killed_pod_has_the_exit_code_that_a_kubelet_would_report(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start(WAITS_FOR_SIGTERM)
        await cluster.ready(2)
        cluster.cluster.kill_pod("example-r1-train-a1", 1)
        stage = await cluster.ended()
        assert stage is not None
        assert [pod.exit_code for pod in stage.pods] == [75, 137]

    run_in_cluster(scenario, tmp_path)


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace_period(tmp_path: Path) -> None:
    script = WAITS_FOR_SIGTERM.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")

    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start(script, nodes=1, grace=1)
        await cluster.ready(1)
        stage = await cluster.stage()
        assert stage is not None
        await cluster.cluster.delete_job(KEY, stage.job_name, stage.uid)
        assert await cluster.ended() is None

    run_in_cluster(scenario, tmp_path)


def test_a_deleted_job_is_listed_until_its_last_pod_has_ended_and_another_uid_is_not_deleted(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start(WAITS_FOR_SIGTERM)
        await cluster.ready(2)
        stage = await cluster.stage()
        assert stage is not None
        await cluster.cluster.delete_job(KEY, stage.job_name, "another uid")
        untouched = await cluster.stage()
        assert untouched is not None
        assert not untouched.deleting
        await cluster.cluster.delete_job(KEY, stage.job_name, stage.uid)
        leaving = await cluster.stage()
        assert leaving is not None
        assert leaving.deleting
        assert await cluster.ended() is None

    run_in_cluster(scenario, tmp_path)


def test_the_termination_message_is_written_by_the_pod(tmp_path: Path) -> None:
    script = """
import json, os
open(os.environ["FINETUNE_TERMINATION_LOG"], "w").write(json.dumps({"stage": "train", "exit_code": 66, "error": "no"}))
raise SystemExit(66)
"""

    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start(script, nodes=1)
        stage = await cluster.ended()
        assert stage is not None
        assert stage.pods[0].message is not None
        assert stage.pods[0].message.error == "no"

    run_in_cluster(scenario, tmp_path)


def test_pods_of_an_earlier_process_count_as_lost_with_the_machine(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        await cluster.start(WAITS_FOR_SIGTERM, nodes=1)
        await cluster.ready(1)
        # A second process finds this after the first was killed: the same files, and no pods of its own.
        later = ClusterFixture(tmp_path)
        stage = await later.stage()
        assert stage is not None
        assert stage.failed
        assert stage.pods[0].disrupted

    run_in_cluster(scenario, tmp_path)


def test_creating_twice_is_allowed_and_a_child_of_another_owner_is_rejected(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        children = make_children("pass", nodes=1)
        for manifest in (*children, *children):
            await cluster.cluster.create_child(manifest)
        stranger = {**children[0], "metadata": {**children[0]["metadata"], "ownerReferences": []}}
        with pytest.raises(ClusterConflictError):
            await cluster.cluster.create_child(stranger)
        assert await cluster.ended() is not None

    run_in_cluster(scenario, tmp_path)


def test_a_config_map_is_replaced_as_long_as_its_job_does_not_exist(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        refused, *_ = make_children("pass", nodes=2)
        children = make_children("pass", nodes=1)
        await cluster.cluster.create_child(refused)
        for manifest in children:
            await cluster.cluster.create_child(manifest)
        await cluster.cluster.create_child(refused)
        config = await cluster.cluster.read_config(KEY, refused["metadata"]["name"])
        assert config == children[0]["data"][CONFIG_KEY]
        assert await cluster.ended() is not None

    run_in_cluster(scenario, tmp_path)


def test_a_job_without_a_namespace_gets_one_like_from_an_api_server(tmp_path: Path) -> None:
    async def scenario(cluster: ClusterFixture) -> None:
        cluster.cluster.put({"kind": "FineTuneJob", "metadata": {"name": KEY.name}, "spec": {}})
        stored = await cluster.cluster.get(KEY)
        assert stored is not None
        assert (stored["metadata"]["namespace"], stored["metadata"]["generation"]) == (KEY.namespace, 1)
        cluster.cluster.put({"kind": "FineTuneJob", "metadata": {"name": KEY.name}, "spec": {"suspend": True}})
        again = await cluster.cluster.get(KEY)
        assert again is not None
        assert (again["metadata"]["uid"], again["metadata"]["generation"]) == (stored["metadata"]["uid"], 2)
        assert again["metadata"]["namespace"] == KEY.namespace

    run_in_cluster(scenario, tmp_path)
