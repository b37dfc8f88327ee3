"""Invariants of a FineTuneJob that hold at any time, whatever users and clusters do."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api import constants
from finetune_api.constants import TERMINAL_CONDITIONS, Stage
from finetune_api.stages import run_stages
from finetune_api.v1alpha1 import Outcome, Status
from reconciled_job import ReconciledJob
from simulated_kubelet import FOREVER, PodEnd

Manifest = dict[str, Any]
_LOST_AFTER = timedelta(seconds=30)


@dataclass
class Snapshot:
    """State of a namespace at one time."""

    objects: list[Manifest]
    jobs: list[Manifest]
    pods: list[Manifest]


@dataclass
class ModeledJob:
    """One job name, under which objects are created and deleted, and everything observed about them."""

    name: str
    reconciled: ReconciledJob
    uid: str = ""
    """UID of the current object; empty if there is none."""
    offset: timedelta = timedelta()
    """Error of the operator's clock."""
    ends: dict[tuple[str, int], tuple[int, PodEnd]] = field(default_factory=dict)
    """(stage, attempt) -> index of the pod that ends by itself, and how it ends."""
    owners: dict[str, str] = field(default_factory=dict)
    """UID of a Job -> UID of its FineTuneJob; kept because pods outlive Jobs."""
    names: dict[str, str] = field(default_factory=dict)
    """UID of a Job -> its name."""
    recorded: dict[tuple[str, str], str] = field(default_factory=dict)
    """(UID of the FineTuneJob, name of a Job that status has listed) -> UID of that Job."""
    given_up: set[str] = field(default_factory=set)
    """UIDs of Jobs with a pod that the operator could consider lost."""
    generations: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    ended: dict[tuple[str, int], str] = field(default_factory=dict)
    """(UID, run) -> the terminal condition."""
    numbers: dict[tuple[str, int, str], int] = field(default_factory=dict)
    """(UID, run, stage) -> highest attempt so far."""

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def script(self, stage: Stage, attempt: int, index: int) -> PodEnd:
        """Pods run until a rule specifies how one of them ends; if it succeeds, all do."""
        culprit, end = self.ends.get((str(stage), attempt), (0, FOREVER))
        return end if end.code == 0 or index == culprit else FOREVER

    def check(self, snapshot: Snapshot) -> None:
        """Raise AssertionError if an invariant is violated."""
        manifest = next((item for item in snapshot.objects if item["metadata"]["name"] == self.name), None)
        self.uid = manifest["metadata"]["uid"] if manifest else ""
        self._remember(snapshot)
        self._one_attempt_at_a_time(snapshot)
        if manifest is not None and manifest.get("status"):
            status = Status.read(manifest["status"])
            self._moves_only_forward(manifest, status)
            self._within_budget(manifest, status)
            self._attempt_numbers_are_unique(status)

    def active_jobs(self, snapshot: Snapshot) -> list[Manifest]:
        """Jobs of the current object that have not ended."""
        return [job for job in snapshot.jobs if self._owner(job) == self.uid and self.uid and not _has_ended(job)]

    def pods_of(self, job: Manifest, snapshot: Snapshot) -> list[Manifest]:
        return [pod for pod in snapshot.pods if _controller(pod) == job["metadata"]["uid"]]

    def _owner(self, job: Manifest) -> str:
        return _controller(job)

    def _remember(self, snapshot: Snapshot) -> None:
        for job in snapshot.jobs:
            if job["metadata"]["labels"].get(constants.LABEL_JOB) == self.name:
                self.owners[job["metadata"]["uid"]] = self._owner(job)
                self.names[job["metadata"]["uid"]] = job["metadata"]["name"]
        for pod in snapshot.pods:
            due = pod["metadata"].get("deletionTimestamp")
            if due and self.now() >= datetime.fromisoformat(due) + _LOST_AFTER - timedelta(seconds=2):
                self.given_up.add(_controller(pod))

    def _one_attempt_at_a_time(self, snapshot: Snapshot) -> None:
        running = {
            _controller(pod)
            for pod in snapshot.pods
            if pod["status"].get("phase") == "Running" and _controller(pod) in self.owners
        }
        by_object: dict[str, list[str]] = {}
        for uid in running - self.given_up:
            by_object.setdefault(self.owners[uid], []).append(self.names[uid])
        assert all(len(names) == 1 for names in by_object.values()), f"pods of several attempts run: {by_object}"

    def _moves_only_forward(self, manifest: Manifest, status: Status) -> None:
        uid, generation = manifest["metadata"]["uid"], status.observed_generation
        last = self.generations.get(uid, constants.UNOBSERVED_GENERATION)
        assert last <= generation <= manifest["metadata"]["generation"], "observedGeneration"
        self.generations[uid] = generation
        assert status.run.number >= self.runs.get(uid, 0), f"run {status.run.number} after {self.runs[uid]}"
        self.runs[uid] = status.run.number
        over = [
            entry.type for entry in status.conditions if entry.type in TERMINAL_CONDITIONS and entry.status == "True"
        ]
        assert len(over) <= 1, over
        before = self.ended.get((uid, status.run.number))
        assert before is None or over == [before], f"{before} changed to {over}"
        if over:
            self.ended[uid, status.run.number] = over[0]

    def _within_budget(self, manifest: Manifest, status: Status) -> None:
        limits = manifest["spec"]["restart"]
        assert status.run.restarts <= limits["maxRestarts"] + 1, "restarts"
        assert status.run.disruptions <= limits["maxDisruptions"] + 1, "disruptions"
        for stage in run_stages():
            charged = sum(entry.outcome is Outcome.RETRYABLE for entry in status.run.attempts if entry.stage is stage)
            assert charged <= limits["maxRestarts"] + 1, f"{charged} attempts at {stage} failed"

    def _attempt_numbers_are_unique(self, status: Status) -> None:
        order = [(list(Stage).index(entry.stage), entry.number) for entry in status.run.attempts]
        assert order == sorted(set(order)), f"attempts {order}"
        for entry in status.run.attempts:
            key = (self.uid, status.run.number, str(entry.stage))
            self.numbers[key] = max(self.numbers.get(key, 0), entry.number)
        for stage in {entry.stage for entry in status.run.attempts}:
            newest = max(entry.number for entry in status.run.attempts if entry.stage is stage)
            assert newest == self.numbers[self.uid, status.run.number, str(stage)], f"{stage} went back to {newest}"
        listed = {entry.job_name for entry in status.run.attempts}
        for uid, name in self.names.items():
            if name in listed and self.owners[uid] == self.uid:
                known = self.recorded.setdefault((self.uid, name), uid)
                assert known == uid, f"{name} was created twice"


def _controller(manifest: Manifest) -> str:
    owners = manifest["metadata"].get("ownerReferences", [])
    return next((owner["uid"] for owner in owners if owner.get("controller")), "")


def _has_ended(job: Manifest) -> bool:
    conditions = job.get("status", {}).get("conditions") or []
    return any(entry["type"] in {"Complete", "Failed"} and entry["status"] == "True" for entry in conditions)
