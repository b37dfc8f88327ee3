"""What a failed worker costs on two real nodes: from its end to the next optimizer step, part by part.

    python benchmarks/recovery.py [--rounds N]

A job trains with two pods on a cluster of its own (as the tests start it: Linux, root, Go), under an operator with its
default settings. Again and again a worker is lost: its rank is killed (`exit`), or its pod is deleted (`deletion`).
Beside it, in the same run, the peer: a bare Indexed Job of two pods that do nothing, created anew once the old one is
Failed. Prints the medians of all parts and, as the last line, one JSON object. ratio: seconds until all pods of the
next attempt run, of those that the bare Job takes, after a killed rank.
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
from finetune_trainer.store import ObjectStore  # noqa: E402
from testcluster.access import condition  # noqa: E402
from testcluster.control_plane import ControlPlane  # noqa: E402
from testcluster.pod_manifests import indexed_job, python_template  # noqa: E402
from testcluster.pods import PodsCluster  # noqa: E402
from testcluster.run_folder import run_folder  # noqa: E402
from training_site import GRACE_SECONDS, Site, training_site  # noqa: E402

T = TypeVar("T")
Manifest = dict[str, Any]

NAME = "recovering"
BARE = "bare"
KINDS = ("exit", "deletion")
LOOK_SECONDS = 0.05
LIMIT_SECONDS = 600.0
IDLE = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(3600)"
PARTS = {
    "judged": "the pod's end -> its Job is about to fail (FailureTarget)",
    "ended": "-> the Job is Failed: the other pod has ended too",
    "created": "-> the next attempt's Job exists",
    "running": "-> all its pods run",
    "supervisor": "-> rank 0's supervisor is up",
    "import": "-> the ranks have torch, transformers, DeepSpeed",
    "claim": "-> the run is claimed",
    "model": "-> model and data are loaded",
    "engine": "-> the ZeRO engine is built",
    "restore": "-> the checkpoint is restored",
    "step": "-> the first optimizer step is done (and what is between the parts)",
}
TRAINING = ("import", "claim", "model", "engine", "restore")
"""Parts that the trainer measures itself."""


@dataclass
class Seen:
    """When what was first seen, in seconds since 1970."""

    at: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, holds: object) -> bool:
        if holds:
            self.at.setdefault(name, time.time())
        return name in self.at


@dataclass(frozen=True)
class Watched:
    """Jobs and pods of the benchmark's namespace, looked at again and again."""

    site: Site
    server: ApiServer
    cluster: KubernetesCluster

    async def jobs(self) -> dict[str, Manifest]:
        listed = await self.server.request("GET", path_of("batch/v1", "jobs", self.site.kubectl.namespace))
        return {job["metadata"]["name"]: job for job in listed["items"]}

    async def pods(self, job: str) -> dict[str, Manifest]:
        """Those of a Job that are not being deleted, by their index."""
        path = path_of("v1", "pods", self.site.kubectl.namespace)
        listed = await self.server.request("GET", path, labelSelector=f"{constants.LABEL_JOB_NAME}={job}")
        return {
            pod["metadata"]["annotations"][constants.COMPLETION_INDEX]: pod
            for pod in listed["items"]
            if "deletionTimestamp" not in pod["metadata"]
        }

    async def until(self, look: Callable[[], Any]) -> Any:
        """The first value of `await look()` that is true."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not (found := await look()):
                await asyncio.sleep(LOOK_SECONDS)
            return found

    async def until_running(self, job: str) -> dict[str, Manifest]:
        async def look() -> dict[str, Manifest] | None:
            pods = await self.pods(job)
            return pods if len(pods) == 2 and all(is_running(pod) for pod in pods.values()) else None

        found: dict[str, Manifest] = await self.until(look)
        return found

    async def end_a_pod(self, kind: str, job: str) -> float:
        """Pod 1 of the Job fails or is deleted; when."""
        pod = (await self.pods(job))["1"]
        now = time.time()
        if kind == "deletion":
            path = path_of("v1", "pods", self.site.kubectl.namespace, pod["metadata"]["name"])
            await self.server.request("DELETE", path, {})
        else:
            os.kill(worker_process(pod), 9)
        return now

    async def end_of(self, job: str, seen: Seen) -> None:
        """Until the Job is Failed, or gone."""

        async def look() -> bool:
            found = (await self.jobs()).get(job)
            if found is not None:
                seen.note("judged", condition(found, "FailureTarget") == "True")
            return seen.note("ended", found is None or condition(found, "Failed") == "True")

        await self.until(look)
        seen.at.setdefault("judged", seen.at["ended"])


def is_running(pod: Manifest) -> bool:
    return bool(pod["status"].get("phase") == "Running")


def worker_process(pod: Manifest) -> int:
    """Of a container, as this machine knows it: the rank, forked last by its server, or what runs in a bare pod.

    A rank's uploader is younger, and its end costs no attempt.
    """
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    found = []
    for file in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            command = (file.parent / "cmdline").read_bytes()
            if container in file.read_text() and b"uploader" not in command:
                started = int((file.parent / "stat").read_text().rpartition(")")[2].split()[19])
                found.append((started, int(file.parent.name)))
        except OSError:
            continue  # it has just ended
    return max(found)[1]


async def bare(watched: Watched, kind: str, number: int) -> float:
    """Seconds from the end of a pod of a bare Job until all pods of the next one run."""
    first, second = f"{BARE}-{kind}-{number}-1", f"{BARE}-{kind}-{number}-2"
    watched.site.kubectl.apply(bare_job(first))
    await watched.until_running(first)
    seen, start = Seen(), await watched.end_a_pod(kind, first)
    await watched.end_of(first, seen)
    path = path_of("batch/v1", "jobs", watched.site.kubectl.namespace)
    await watched.server.request("POST", path, bare_job(second))
    await watched.until_running(second)
    seconds = time.time() - start
    watched.site.kubectl("delete", "job", first, second, "--wait=false")
    return seconds


def bare_job(name: str) -> Manifest:
    job = indexed_job(name, python_template(IDLE, claim="host", terminationGracePeriodSeconds=GRACE_SECONDS), pods=2)
    job["spec"]["podReplacementPolicy"] = "Failed"
    rule = {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]}
    job["spec"]["podFailurePolicy"] = {"rules": [rule]}
    return job


async def trained(watched: Watched, attempt: str, after: int = -1) -> Progress:
    """Rank 0's progress once the attempt has stepped, and saved since the step it started from."""

    async def look() -> Progress | None:
        pod = (await watched.pods(attempt)).get("0")
        progress = None if pod is None else await watched.cluster.read_progress(pod)
        if progress is None or progress.first_step_time is None:
            return None
        saved = progress.last_checkpoint.step if progress.last_checkpoint else -1
        return progress if saved > after else None

    found: Progress = await watched.until(look)
    return found


async def recovery(watched: Watched, kind: str, number: int) -> dict[str, float]:
    """Seconds of every part, from the end of a worker of attempt `number` to the next one's first step."""
    old, new = (f"{NAME}-r1-train-a{count}" for count in (number, number + 1))
    before = await trained(watched, old)
    await trained(watched, old, after=before.resumed_from_step or 0)
    seen, start = Seen(), await watched.end_a_pod(kind, old)
    ending = asyncio.create_task(watched.end_of(old, seen))

    async def look() -> bool:
        return seen.note("created", new in await watched.jobs())

    await watched.until(look)
    await ending
    await watched.until_running(new)
    seen.note("running", True)
    progress = await trained(watched, new)
    assert progress.started_time is not None
    assert progress.first_step_time is not None
    return parts(start, seen, progress)


def parts(start: float, seen: Seen, progress: Progress) -> dict[str, float]:
    """Each from the one before. A pod may be up before it is seen to run: then the supervisor takes no time."""
    up, step = (
        datetime.fromisoformat(str(text)).timestamp() for text in (progress.started_time, progress.first_step_time)
    )
    moments = [
        start,
        *(seen.at[name] for name in ("judged", "ended", "created", "running")),
        max(up, seen.at["running"]),
    ]
    found = {name: moments[index + 1] - moments[index] for index, name in enumerate(list(PARTS)[:5])}
    found |= {name: progress.phase_seconds.get(name, 0.0) for name in TRAINING}
    found["podsRunning"] = seen.at["running"] - start
    found["recovery"] = step - start
    found["step"] = found["recovery"] - sum(found[name] for name in PARTS if name in found)
    return found


async def measure(site: Site, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]]]:
    """Seconds of the bare Jobs, and of our parts, of every round."""
    server = await ApiServer.connect(site.cluster.control.kubectl.kubeconfig)
    watched = Watched(site, server, KubernetesCluster(server))
    bares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ours: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    try:
        for number in range(rounds):
            for kind in KINDS:
                bares[kind].append(await bare(watched, kind, number))
        long = {"training": {"epochs": 5000}, "checkpoint": {"everySteps": 20}, "restart": {"maxRestarts": 100}}
        site.kubectl.apply(site.job(NAME, **long))
        for number in range(rounds):
            for offset, kind in enumerate(KINDS):
                ours[kind].append(await recovery(watched, kind, 1 + len(KINDS) * number + offset))
                print(f"round {number + 1}, {kind}: {ours[kind][-1]['recovery']:.2f} s", flush=True)
    finally:
        await server.close()
    return bares, ours


@contextmanager
def site_of_its_own() -> Iterator[Site]:
    """A cluster, storage and an operator with its default settings."""
    with run_folder() as folder, tempfile.TemporaryDirectory() as data:
        control = ControlPlane(folder).start()
        cluster = PodsCluster(control)
        try:
            cluster.start()
            with EmbeddedStore(Path(data)) as storage:
                os.environ.update(storage.env())
                store = ObjectStore.connect(StorageSettings(endpoint=storage.endpoint, path_style=True))
                defaults = ("--progress-seconds=5", "--termination-grace=120")
                with training_site(cluster, storage, store, *defaults) as site:
                    yield site
        finally:
            cluster.stop()
            control.stop()


def table(bares: dict[str, list[float]], ours: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Print the medians; return them."""
    medians = {
        kind: {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}
        for kind, samples in ours.items()
    }
    print(f"\n{'part':<12}" + "".join(f"{kind:>10}" for kind in KINDS) + "   seconds, medians")
    for name, told in PARTS.items():
        print(f"{name:<12}" + "".join(f"{medians[kind][name]:>10.2f}" for kind in KINDS) + f"   {told}")
    for name in ("podsRunning", "recovery"):
        print(f"{name:<12}" + "".join(f"{medians[kind][name]:>10.2f}" for kind in KINDS))
    for kind in KINDS:
        medians[kind]["bareJob"] = statistics.median(bares[kind])
    print(
        f"{'bare Job':<12}"
        + "".join(f"{medians[kind]['bareJob']:>10.2f}" for kind in KINDS)
        + "   until its pods run\n"
    )
    return medians


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=3, help="losses of each kind")
    rounds = parser.parse_args().rounds
    with site_of_its_own() as site:
        medians = table(*asyncio.run(measure(site, rounds)))
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
