"""`finetune status`, `watch` and `logs` of jobs in a cluster, as a user runs them."""

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from factories import make_job
from finetune_api import constants
from finetune_api.constants import Phase, Stage
from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import StorageSettings
from finetune_cli.cluster.errors import is_unknown_kind
from finetune_operator.clusters.api_server import ApiServer
from finetune_operator.errors import ApiError
from finetune_trainer.store import ObjectStore
from job_namespace import JobNamespace, in_phase, is_training, run_scenario, training_ends
from process_support import base_environment
from simulated_kubelet import FOREVER, NODE, PodEnd
from stored_runs import StoredRun
from testcluster.access import Kubectl, service_account_kubeconfig, write_kubeconfig
from testcluster.control_plane import ControlPlane
from testcluster.pod_manifests import python_pod
from testcluster.pods import PodsCluster


@dataclass
class CommandResult:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class User:
    """Runs `finetune ...` in an empty folder."""

    kubeconfig: Path
    namespace: str
    folder: Path

    async def __call__(self, *arguments: str, within: float = 60) -> CommandResult:
        where = ("--namespace", self.namespace, "--kubeconfig", str(self.kubeconfig))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "finetune_cli", *arguments, *where),
            env={**base_environment(), "COLUMNS": "80"},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(within):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            raise
        assert b"Traceback" not in err, err.decode()
        return CommandResult(process.returncode or 0, out.decode(), err.decode())

    def now(self, *arguments: str) -> CommandResult:
        return asyncio.run(self(*arguments))


@pytest.fixture
def user(admin: Path, namespace: str, tmp_path: Path) -> User:
    return User(admin, namespace, tmp_path)


def slowly_with_one_failure(stage: Stage, attempt: int, _index: int) -> PodEnd:
    """Slow enough for a watch that polls once per second."""
    return PodEnd(70 if (stage, attempt) == (Stage.TRAIN, 1) else 0, after=5.0 if stage is Stage.PREPARE else 2.0)


def test_a_job_that_completes_is_watched_to_its_end_and_shown(admin: Path, namespace: str, user: User) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("well", slowly_with_one_failure)
        watching = asyncio.create_task(user("watch", "well", "--output", "plain"))
        await job.until(in_phase(Phase.SUCCEEDED))
        watched = await watching
        assert (watched.status, watched.err) == (0, "")
        reported = [line[10:] for line in watched.lines]
        assert reported.index("prepare: started") < reported.index("train: started") < reported.index("succeeded")
        assert "well: fine-tuned" in watched.lines
        assert ["accuracy", "10.0", "%", "90.0", "%", "+80.0", "points"] in [line.split() for line in watched.lines]

        page = await user("status", "well")
        assert page.status == 0
        assert max(map(len, page.lines)) <= 80
        assert len(page.lines) <= 32
        assert page.lines[0].startswith("well: Succeeded ")
        assert f"namespace {namespace}, context test, run 1" in page.lines[1]
        assert ["train", "1", "Retryable"] in [line.split()[:3] for line in page.lines]
        assert any(line.startswith("restarts      1 of 3") for line in page.lines)
        assert page.lines[-1].split(" ago  ")[1].startswith("Succeeded: ")
        assert "conditions" not in page.out

        reported = [json.loads(line) for line in (await user("watch", "well", "--output", "json")).lines]
        assert [line["event"] for line in reported] == ["finished"]
        assert reported[0]["status"]["run"]["candidates"]["tuned"]["metrics"]["Accuracy"] == 0.9
        found = json.loads((await user("status", "well", "-o", "json")).out)
        assert found["status"]["phase"] == "Succeeded"
        assert "managedFields" not in found["metadata"]

    run_scenario(admin, namespace, scenario)


def test_a_job_that_fails_ends_the_watch_with_the_trainers_status(admin: Path, namespace: str, user: User) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("bad", training_ends(PodEnd(65)))
        watching = asyncio.create_task(user("watch", "bad"))
        await job.until(in_phase(Phase.FAILED))
        watched = await watching
        assert watched.status == 65
        assert "bad: failed" in watched.lines
        page = await user("status", "bad")
        assert page.status == 0
        assert "failure       BadData (exit status 65) in train attempt 1" in page.lines
        assert "where         rank 0, pod bad-r1-train-a1-1-" in page.out
        assert "node simulated" in " ".join(page.out.split())
        assert "not Ready, Failed, Stalled: PermanentFailure: " in " ".join(page.out.split())

    run_scenario(admin, namespace, scenario)


def test_a_suspended_job_ends_the_watch_and_resuming_does_not(admin: Path, namespace: str, user: User) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("rests", training_ends(FOREVER))
        await job.until(is_training)
        watching = asyncio.create_task(user("watch", "rests"))
        await asyncio.sleep(2)
        await world.change("rests", suspend=True)
        await job.until(in_phase(Phase.SUSPENDED))
        watched = await watching
        assert watched.status == 3
        assert watched.lines[-1].split(maxsplit=1) == ["resume", "set spec.suspend to false"]
        page = await user("status", "rests")
        assert page.lines[0].startswith("rests: Suspended ")
        assert "conditions" not in page.out, "what the user wants is as it should be"

        # Not finished, although status still says Suspended: the operator has not observed the change.
        await world.change("rests", suspend=False)
        assert "not observed: the operator has not reconciled" in (await user("status", "rests")).out
        watching = asyncio.create_task(user("watch", "rests"))
        await asyncio.sleep(3)
        assert not watching.done()
        await job.until(in_phase(Phase.SUCCEEDED))
        assert (await watching).status == 0

    run_scenario(admin, namespace, scenario)


def test_checkpoints_are_found_by_the_name_of_their_job(
    admin: Path, namespace: str, user: User, store: ObjectStore, bucket: str, storage_settings: StorageSettings
) -> None:
    """Only the operator knows the storage; the user has its credentials in the environment."""

    async def scenario(world: JobNamespace) -> None:
        job = await world.create("kept", training_ends(FOREVER), output={"uri": f"s3://{bucket}/kept"})
        assert (await user("checkpoints", "list", "kept")).err == "finetune: kept has not started a run yet\n"
        job.settings = replace(job.settings, storage=storage_settings)
        await job.until(is_training)
        uid = (await world.read("kept"))["metadata"]["uid"]
        run = StoredRun(store, RunLayout.of(f"s3://{bucket}/kept", 1, uid).uri)
        for step in (1, 2, 3):
            run.save(step)
        listed = await user("checkpoints", "list", "kept", "-o", "json")
        assert [entry["step"] for entry in json.loads(listed.out)] == [3, 2, 1]
        assert (await user("checkpoints", "verify", "kept", "--step", "2")).status == 0

        # Nothing is removed accidentally during training.
        refused = await user("checkpoints", "prune", "kept", "--keep-last", "1")
        assert refused.status == 2
        assert refused.err.startswith(f"finetune: kept is Training: an attempt may be running in {run.uri}, ")
        assert len(run.names()) == 3
        await world.change("kept", suspend=True)
        await job.until(in_phase(Phase.SUSPENDED))
        pruned = await user("checkpoints", "prune", "kept", "--keep-last", "1", "--keep-best", "0")
        assert (pruned.status, list(run.restorable())) == (0, ["00000003-a0001"])

    run_scenario(admin, namespace, scenario)


def test_an_invalid_job_is_shown_with_all_violations(admin: Path, namespace: str, user: User) -> None:
    async def scenario(world: JobNamespace) -> None:
        job = await world.create("wrong", model={"uri": "file:///models/base"})
        await job.until(in_phase(Phase.INVALID))
        page = await user("status", "wrong")
        assert page.lines[0].startswith("wrong: Invalid ")
        assert "spec.model.uri must be an address that every node can reach, not file:///models/base" in " ".join(
            page.out.split()
        )
        assert (await user("watch", "wrong")).status == 65

    run_scenario(admin, namespace, scenario)


def test_an_unknown_name_is_reported_with_suggestions(user: User, kubectl: Kubectl) -> None:
    for command in ("status", "watch", "logs"):
        result = user.now(command, "topics")
        assert result.status == 66
        expected = (
            f"there is no FineTuneJob topics in namespace {user.namespace} (context test); the namespace has none"
        )
        assert result.err == f"finetune: {expected}\n"
    kubectl.apply(make_job("topic-classifier", namespace=user.namespace))
    assert "; did you mean topic-classifier?" in user.now("status", "topics-classifier").err
    assert "; existing jobs: topic-classifier\n" in user.now("status", "x").err


def test_missing_permission_is_reported_with_the_message_of_the_api_server(
    control_plane: ControlPlane, user: User, kubectl: Kubectl, tmp_path: Path
) -> None:
    kubectl("create", "serviceaccount", "nobody")
    user.kubeconfig = service_account_kubeconfig(kubectl, tmp_path / "nobody", user.namespace, "nobody")
    for command in ("status", "watch", "logs"):
        result = user.now(command, "topics")
        assert result.status == 77
        assert result.err.startswith("finetune: the cluster rejected the request: finetunejobs.finetune.dev ")
        assert 'nobody" cannot get resource "finetunejobs" in API group "finetune.dev" in the namespace' in result.err
        assert len(result.err.splitlines()) == 1


def test_an_expired_token_is_requested_again_and_then_reported(user: User, tmp_path: Path) -> None:
    content = json.loads(user.kubeconfig.read_text())
    content["users"][0]["user"] = {"token": "expired"}
    user.kubeconfig = write_kubeconfig(tmp_path / "expired", content)
    result = user.now("status", "topics")
    assert (result.status, result.err) == (77, "finetune: the cluster rejected the request: Unauthorized\n")


def test_an_unreachable_cluster_is_reported(user: User, tmp_path: Path) -> None:
    content = json.loads(user.kubeconfig.read_text())
    assert user.now("status", "x", "--context", "other").status == 78
    content["clusters"][0]["cluster"] = {"server": "http://127.0.0.1:9"}
    user.kubeconfig = write_kubeconfig(tmp_path / "dead", content)
    for command in ("status", "watch", "logs"):
        result = user.now(command, "topics")
        assert result.status == 69
        assert result.err.startswith("finetune: the cluster is unreachable: GET /apis/finetune.dev/")


def test_an_api_server_without_the_kind_is_distinguished_from_one_without_the_job(admin: Path, namespace: str) -> None:
    async def refusal(version: str, plural: str) -> ApiError:
        server = await ApiServer.connect(admin)
        try:
            with pytest.raises(ApiError) as caught:
                await server.request("GET", f"/apis/{version}/namespaces/{namespace}/{plural}/x")
        finally:
            await server.close()
        return caught.value

    for version, plural in (("other.dev/v1", "things"), (constants.API_VERSION, "things"), ("finetune.dev/v9", "x")):
        assert is_unknown_kind(asyncio.run(refusal(version, plural)))
    assert not is_unknown_kind(asyncio.run(refusal(constants.API_VERSION, constants.PLURAL)))


# ---- logs of real pods -----------------------------------------------------------------------------------------------

TALK = """
import json, time
for moment, word in {words}:
    if word == "pause":
        time.sleep(6)
    else:
        line = {{"time": f"2026-01-01T12:00:0{{moment}}+00:00", "rank": {index}, "level": "INFO", "message": word}}
        print(json.dumps(line) if moment else word, flush=True)
"""


@pytest.fixture
def only_real_nodes(pods_cluster: PodsCluster, kubectl: Kubectl) -> None:
    """The simulated node accepts pods for some seconds after its kubelet has stopped."""
    kubectl("delete", "node", NODE, "--ignore-not-found")


def talking_pod(job: str, index: int, *words: tuple[int, str], **spec: Any) -> dict[str, Any]:
    """A pod with the labels of a trainer pod, which logs the words at these seconds; 0: not as JSON."""
    pod = python_pod(f"{job}-{index}", TALK.format(words=list(words), index=index), **spec)
    pod["spec"]["containers"][0]["name"] = constants.TRAINER_CONTAINER
    labels = {constants.LABEL_JOB: job, constants.LABEL_RUN: "1", constants.LABEL_STAGE: "train"}
    pod["metadata"] |= {
        "labels": {**labels, constants.LABEL_ATTEMPT: "1"},
        "annotations": {constants.COMPLETION_INDEX: str(index)},
    }
    return pod


def until_phase(kubectl: Kubectl, pod: str, phase: str) -> None:
    kubectl.until(f"pod/{pod}", lambda found: found["status"].get("phase") == phase, within=60)


def words_of(result: CommandResult) -> list[str]:
    return [line.split()[-1] for line in result.lines]


@pytest.mark.usefixtures("only_real_nodes")
def test_logs_of_all_ranks_are_in_order_of_time(user: User, kubectl: Kubectl) -> None:
    kubectl.apply(make_job("talks", namespace=user.namespace))
    kubectl.apply(
        talking_pod("talks", 0, (1, "first"), (3, "third"), (0, "bare")),
        talking_pod("talks", 1, (2, "second"), (4, "fourth")),
        talking_pod("talks", 2, (1, "never"), nodeSelector={"no": "node"}),
    )
    for index in (0, 1):
        until_phase(kubectl, f"talks-{index}", "Succeeded")
    result = user.now("logs", "talks")
    assert result.status == 0
    assert words_of(result) == ["first", "second", "third", "fourth", "bare"]
    assert result.lines[0] == "12:00:01 train a1 rank 0  INFO first"
    assert result.err.startswith("finetune: talks-2 has not started: 0/2 nodes are available: ")
    assert words_of(user.now("logs", "talks", "--rank", "1")) == ["second", "fourth"]
    missing = user.now("logs", "talks", "--attempt", "2")
    assert (missing.status, missing.out) == (1, "")
    assert "talks has no such pods; run `finetune status talks` for its status" in missing.err


@pytest.mark.usefixtures("only_real_nodes")
def test_following_ends_with_the_job_and_prints_each_line_once(user: User, kubectl: Kubectl) -> None:
    kubectl.apply(make_job("slow", namespace=user.namespace))
    kubectl.apply(talking_pod("slow", 0, (1, "early"), (0, "pause"), (2, "late"), (2, "last")))
    until_phase(kubectl, "slow-0", "Running")

    async def scenario() -> CommandResult:
        following = asyncio.create_task(user("logs", "slow", "--follow"))
        await asyncio.to_thread(until_phase, kubectl, "slow-0", "Succeeded")
        assert not following.done()
        attempts = [{"stage": "train", "number": number, "jobName": f"slow-{number}"} for number in (1, 2)]
        over = {"phase": "Succeeded", "observedGeneration": 1, "run": {"number": 1}}
        over["run"]["attempts"] = [{**entry, "startTime": "2026-01-01T12:00:00Z"} for entry in attempts]
        kubectl("patch", "ftj", "slow", "--subresource=status", "--type=merge", "-p", json.dumps({"status": over}))
        return await following

    result = asyncio.run(scenario())
    assert (result.status, words_of(result)) == (0, ["early", "late", "last"])
    assert "the pods of train attempt 2 were deleted, with their logs" in result.err
