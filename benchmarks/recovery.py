"""Benchmark the recovery from a failed worker on two real nodes, from its end to the next optimizer step.

    python benchmarks/recovery.py [--rounds N]

A job trains with two pods on a dedicated cluster (started as in the tests; needs Linux, root and Go), with an operator
with default settings. Workers are lost repeatedly: the rank is killed (`exit`), or the pod is deleted (`deletion`). The
baseline, in the same run, is a bare Indexed Job of two idle pods, which is created again when the previous one is
Failed. Prints the medians of all parts and, as the last line, a JSON object. ratio: time until all pods of the next
attempt are running after a killed rank, divided by that of the bare Job.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("operator", "trainer", "tests/support")]

from finetune_api import constants  # noqa: E402
from finetune_api.progress import Progress  # noqa: E402
from finetune_api.trainer_config import StorageSettings  # noqa: E402
from finetune_cli.local.embedded_store import EmbeddedStore  # noqa: E402
from finetune_operator.clusters.api_server import ApiServer  # noqa: E402
from finetune_operator.clusters.kubernetes import KubernetesCluster, path_of  # noqa: E402
from finetune_trainer.checkpoint.upload.uploader import PROCESS_NAME  # noqa: E402
from finetune_trainer.store import ObjectStore  # noqa: E402
from testcluster.access import condition  # noqa: E402
from testcluster.control_plane import ControlPlane  # noqa: E402
from testcluster.pod_manifests import indexed_job, python_template  # noqa: E402
from testcluster.pods import PodsCluster  # noqa: E402
from testcluster.run_folder import run_folder  # noqa: E402
from training_setup import GRACE_SECONDS, TrainingSetup, training_setup  # noqa: E402

T = TypeVar("T")
Manifest = dict[str, Any]

NAME = "recovering"
BARE = "bare"
KINDS = ("exit", "deletion")
POLL_SECONDS = 0.05
LIMIT_SECONDS = 600.0
IDLE = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(3600)"
PARTS = {
    "failureTarget": "end of the pod -> its Job has the condition FailureTarget",
    "ended": "-> the Job is Failed, and the other pod has ended",
    "created": "-> the Job of the next attempt exists",
    "running": "-> all of its pods are running",
    "supervisor": "-> the supervisor of rank 0 has started",
    "import": "-> the ranks have imported torch, transformers and DeepSpeed",
    "claim": "-> the run is claimed",
    "model": "-> model and data are loaded",
    "engine": "-> the ZeRO engine is built",
    "restore": "-> the checkpoint is restored",
    "step": "-> the first optimizer step is done (and the time between the parts)",
}
TRAINING = ("import", "claim", "model", "engine", "restore")
"""Parts that the trainer measures."""


@dataclass
class Timestamps:
    """Times of the first observation of each event, in seconds since 1970."""

    at: dict[str, float] = field(default_factory=dict)

    def record(self, name: str, holds: object) -> bool:
        if holds:
            self.at.setdefault(name, time.time())
        return name in self.at


@dataclass(frozen=True)
class BenchmarkNamespace:
    """Jobs and pods in the namespace of the benchmark."""

    setup: TrainingSetup
    server: ApiServer
    cluster: KubernetesCluster

    async def jobs(self) -> dict[str, Manifest]:
        listed = await self.server.request("GET", path_of("batch/v1", "jobs", self.setup.kubectl.namespace))
        return {job["metadata"]["name"]: job for job in listed["items"]}

    async def pods(self, job: str) -> dict[str, Manifest]:
        """Return the pods of a Job that are not being deleted, by index."""
        path = path_of("v1", "pods", self.setup.kubectl.namespace)
        listed = await self.server.request("GET", path, labelSelector=f"{constants.LABEL_JOB_NAME}={job}")
        return {
            pod["metadata"]["annotations"][constants.COMPLETION_INDEX]: pod
            for pod in listed["items"]
            if "deletionTimestamp" not in pod["metadata"]
        }

    async def until(self, poll: Callable[[], Any]) -> Any:
        """Poll until the result is true, and return it."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not (found := await poll()):
                await asyncio.sleep(POLL_SECONDS)
            return found

    async def until_running(self, job: str) -> dict[str, Manifest]:
        async def poll() -> dict[str, Manifest] | None:
            pods = await self.pods(job)
            return pods if len(pods) == 2 and all(is_running(pod) for pod in pods.values()) else None

        found: dict[str, Manifest] = await self.until(poll)
        return found

    async def terminate_pod(self, kind: str, job: str) -> float:
        """Let pod 1 of the Job fail, or delete it. Return the time."""
        pod = (await self.pods(job))["1"]
        now = time.time()
        if kind == "deletion":
            path = path_of("v1", "pods", self.setup.kubectl.namespace, pod["metadata"]["name"])
            await self.server.request("DELETE", path, {})
        else:
            os.kill(worker_process(pod), 9)
        return now

    async def wait_for_end(self, job: str, times: Timestamps) -> None:
        """Wait until the Job is Failed or deleted."""

        async def poll() -> bool:
            found = (await self.jobs()).get(job)
            if found is not None:
                times.record("failureTarget", condition(found, "FailureTarget") == "True")
            return times.record("ended", found is None or condition(found, "Failed") == "True")

        await self.until(poll)
        times.at.setdefault("failureTarget", times.at["ended"])


def is_running(pod: Manifest) -> bool:
    return bool(pod["status"].get("phase") == "Running")


def worker_process(pod: Manifest) -> int:
    """Return the process id of a worker on this machine: the rank, which is forked last, or a bare pod's process.

    The uploader of a rank starts later, but is skipped, because its end does not end the attempt.
    """
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    found = []
    for file in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            name = (file.parent / "comm").read_text().strip()
            if container in file.read_text() and name != PROCESS_NAME:
                started = int((file.parent / "stat").read_text().rpartition(")")[2].split()[19])
                found.append((started, int(file.parent.name)))
        except OSError:
            continue  # the process has ended
    return max(found)[1]


async def bare(namespace: BenchmarkNamespace, kind: str, number: int) -> float:
    """Return the seconds from the end of a pod of a bare Job until all pods of the next one are running."""
    first, second = f"{BARE}-{kind}-{number}-1", f"{BARE}-{kind}-{number}-2"
    namespace.setup.kubectl.apply(bare_job(first))
    await namespace.until_running(first)
    times, start = Timestamps(), await namespace.terminate_pod(kind, first)
    await namespace.wait_for_end(first, times)
    path = path_of("batch/v1", "jobs", namespace.setup.kubectl.namespace)
    await namespace.server.request("POST", path, bare_job(second))
    await namespace.until_running(second)
    seconds = time.time() - start
    namespace.setup.kubectl("delete", "job", first, second, "--wait=false")
    return seconds


def bare_job(name: str) -> Manifest:
    job = indexed_job(name, python_template(IDLE, claim="host", terminationGracePeriodSeconds=GRACE_SECONDS), pods=2)
    job["spec"]["podReplacementPolicy"] = "Failed"
    rule = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}
    job["spec"]["podFailurePolicy"] = {"rules": [rule]}
    return job


async def wait_for_training(namespace: BenchmarkNamespace, attempt: str, after: int = -1) -> Progress:
    """Return the progress of rank 0 when the attempt has completed a step and saved a checkpoint later than `after`."""

    async def poll() -> Progress | None:
        pod = (await namespace.pods(attempt)).get("0")
        progress = None if pod is None else await namespace.cluster.read_progress(pod)
        if progress is None or progress.first_step_time is None:
            return None
        saved = progress.last_checkpoint.step if progress.last_checkpoint else -1
        return progress if saved > after else None

    found: Progress = await namespace.until(poll)
    return found


async def recovery(namespace: BenchmarkNamespace, kind: str, number: int) -> dict[str, float]:
    """Return the seconds of every part, from the end of a worker of attempt `number` to the first step of the next."""
    old, new = (f"{NAME}-r1-train-a{count}" for count in (number, number + 1))
    before = await wait_for_training(namespace, old)
    await wait_for_training(namespace, old, after=before.resumed_from_step or 0)
    times, start = Timestamps(), await namespace.terminate_pod(kind, old)
    end_task = asyncio.create_task(namespace.wait_for_end(old, times))

    async def poll() -> bool:
        return times.record("created", new in await namespace.jobs())

    await namespace.until(poll)
    await end_task
    await namespace.until_running(new)
    times.record("running", True)
    progress = await wait_for_training(namespace, new)
    assert progress.started_time is not None
    assert progress.first_step_time is not None
    return parts(start, times, progress)


def parts(start: float, times: Timestamps, progress: Progress) -> dict[str, float]:
    """Return the duration of each part.

    If the supervisor starts before the pod is observed to be running, its part is 0.
    """
    up, step = (
        datetime.fromisoformat(str(text)).timestamp() for text in (progress.started_time, progress.first_step_time)
    )
    moments = [
        start,
        *(times.at[name] for name in ("failureTarget", "ended", "created", "running")),
        max(up, times.at["running"]),
    ]
    found = {name: moments[index + 1] - moments[index] for index, name in enumerate(list(PARTS)[:5])}
    found |= {name: progress.phase_seconds.get(name, 0.0) for name in TRAINING}
    found["podsRunning"] = times.at["running"] - start
    found["recovery"] = step - start
    found["step"] = found["recovery"] - sum(found[name] for name in PARTS if name in found)
    return found


async def measure(
    setup: TrainingSetup, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]]]:
    """Return the seconds of the bare Jobs, and of our parts, for every round."""
    server = await ApiServer.connect(setup.cluster.control.kubectl.kubeconfig)
    namespace = BenchmarkNamespace(setup, server, KubernetesCluster(server))
    bare_seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ours: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    try:
        for number in range(rounds):
            for kind in KINDS:
                bare_seconds[kind].append(await bare(namespace, kind, number))
        long = {"training": {"epochs": 5000}, "checkpoint": {"everySteps": 20}, "restart": {"maxRestarts": 100}}
        setup.kubectl.apply(setup.job(NAME, **long))
        for number in range(rounds):
            for offset, kind in enumerate(KINDS):
                ours[kind].append(await recovery(namespace, kind, 1 + len(KINDS) * number + offset))
                print(f"round {number + 1}, {kind}: {ours[kind][-1]['recovery']:.2f} s", flush=True)
    finally:
        await server.close()
    return bare_seconds, ours


@contextmanager
def dedicated_setup() -> Iterator[TrainingSetup]:
    """Start a cluster, storage and an operator with default settings."""
    with run_folder() as folder, tempfile.TemporaryDirectory() as data:
        control = ControlPlane(folder).start()
        cluster = PodsCluster(control)
        try:
            cluster.start()
            with EmbeddedStore(Path(data)) as storage:
                os.environ.update(storage.env())
                store = ObjectStore.connect(StorageSettings(endpoint=storage.endpoint, path_style=True))
                defaults = ("--progress-seconds=5", "--termination-grace=120")
                with training_setup(cluster, storage, store, *defaults) as setup:
                    yield setup
        finally:
            cluster.stop()
            control.stop()


def table(bare_seconds: dict[str, list[float]], ours: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print and return the medians."""
    medians = {
        kind: {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
        for kind, samples in ours.items()
    }
    print(f"\n{'part':<12}" + "".join(f"{kind:>10}" for kind in KINDS) + "   seconds, medians")
    for name, description in PARTS.items():
        print(f"{name:<12}" + "".join(f"{medians[kind][name]:>10.2f}" for kind in KINDS) + f"   {description}")
    for name in ("podsRunning", "recovery"):
        print(f"{name:<12}" + "".join(f"{medians[kind][name]:>10.2f}" for kind in KINDS))
    for kind in KINDS:
        medians[kind]["bareJob"] = statistics.median(bare_seconds[kind])
    print(
        f"{'bare Job':<12}"
        + "".join(f"{medians[kind]['bareJob']:>10.2f}" for kind in KINDS)
        + "   until its pods are running\n"
    )
    return medians


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="number of losses of each kind")
    rounds = parser.parse_args().rounds
    with dedicated_setup() as setup:
        medians = table(*asyncio.run(measure(setup, rounds)))
    killed, deleted = (medians[kind] for kind in KINDS)
    summary = {
        "recoverySeconds": killed["recovery"],
        "podsRunningSeconds": killed["podsRunning"],
        "bareJobSeconds": killed["bareJob"],
        "ratio": killed["podsRunning"] / killed["bareJob"],
        "importSeconds": killed["import"],
        "modelSeconds": killed["model"] + killed["engine"],
        "restoreSeconds": killed["restore"],
        "deletionRecoverySeconds": deleted["recovery"],
        "deletionPodsRunningSeconds": deleted["podsRunning"],
        "deletionBareJobSeconds": deleted["bareJob"],
        "deletionRatio": deleted["podsRunning"] / deleted["bareJob"],
    }
    print(json.dumps({"benchmark": "recovery", **{name: round(value, 2) for name, value in summary.items()}}))


if __name__ == "__main__":
    main()
