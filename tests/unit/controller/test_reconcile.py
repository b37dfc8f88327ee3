"""The requests of a reconcile: which reads it needs, in which order it writes, and what it does with refusals."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import LABEL_JOB_NAME, LABEL_USABLE, Phase
from finetune_api.progress import Progress
from finetune_api.validation import parse_job
from finetune_operator.errors import ApiError, ApiUnreachableError, ClusterConflictError
from finetune_operator.job_policy.model import JobPolicy, parse_policy
from finetune_operator.manifests import JobKey, Manifest
from finetune_operator.policy.runs import run_hash
from finetune_operator.reconcile import ReconcileResult, reconcile
from finetune_operator.settings import OperatorSettings
from observations import STAMP

KEY = JobKey("default", "example")
NOW = datetime.fromisoformat(STAMP)


@dataclass
class RecordingCluster:
    """A cluster in memory. `errors` has the error that a call raises, by the text of the call."""

    job: Manifest
    calls: list[str] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    jobs: dict[str, Manifest] = field(default_factory=dict)
    pods: list[Manifest] = field(default_factory=list)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Labels of Secrets and claims, by name."""

    def _call(self, text: str) -> None:
        self.calls.append(text)
        if text in self.errors:
            raise self.errors[text]

    async def get(self, key: JobKey) -> Manifest | None:
        self._call("get")
        return {**self.job}

    async def list_jobs(self, key: JobKey, awaited: Any) -> list[Manifest]:
        self._call("list jobs")
        return [*self.jobs.values()]

    async def list_pods(self, key: JobKey, jobs: Any) -> list[Manifest]:
        self._call("list pods")
        return self.pods

    async def read_config(self, key: JobKey, child: str) -> str | None:
        self._call(f"read ConfigMap {child}")
        return None

    async def read_queue_reason(self, key: JobKey, uid: str) -> str:
        return ""

    async def read_labels(self, key: JobKey, kind: str, name: str) -> dict[str, str] | None:
        self._call(f"read labels of {kind} {name}")
        return self.labels.get(name)

    async def list_warnings(self, key: JobKey, names: tuple[str, ...]) -> list[Manifest]:
        self._call(f"list Events of {', '.join(names)}")
        return []

    async def read_progress(self, pod: Manifest) -> Progress | None:
        self._call("read progress")
        return None

    async def serves_pod_groups(self) -> bool:
        self._call("discover PodGroups")
        return False

    async def create_child(self, manifest: Manifest) -> None:
        self._call(f"create {manifest['kind']}")
        if manifest["kind"] == "Job":
            name = manifest["metadata"]["name"]
            uid, created = f"uid of {name}", {"creationTimestamp": STAMP}
            self.jobs[name] = {**manifest, "metadata": {**manifest["metadata"], "uid": uid, **created}}
            owner = {"uid": uid, "controller": True}
            labels = {LABEL_JOB_NAME: name}
            pod = {"name": f"{name}-0", "labels": labels, "ownerReferences": [owner], **created}
            self.pods = [{"metadata": pod, "status": {"phase": "Pending"}}]

    async def delete_job(self, key: JobKey, name: str, uid: str, *, has_gang: bool = False) -> None:
        self._call(f"delete {name}" + (" with its PodGroup" if has_gang else ""))

    async def update_status(self, manifest: Manifest, status: Manifest) -> None:
        self._call("update status")
        self.job = {**self.job, "status": status}

    async def create_event(self, event: Manifest) -> None:
        self._call(f"create Event {event['reason']}")


def make_cluster(**spec: Any) -> RecordingCluster:
    manifest = make_job(KEY.name, **spec)
    manifest["metadata"] |= {"uid": "u", "generation": 1}
    return RecordingCluster(manifest)


def reconciled(
    cluster: RecordingCluster, after: float = 0.0, policy: JobPolicy | None = None
) -> tuple[ReconcileResult, list[str]]:
    """The result of a reconcile, and its calls."""
    cluster.calls.clear()
    result = asyncio.run(reconcile(cluster, KEY, OperatorSettings(policy=policy), NOW + timedelta(seconds=after)))
    assert result is not None
    return result, cluster.calls


def edit(cluster: RecordingCluster, **spec: Any) -> None:
    """Change the spec of the object as a user does."""
    metadata = {**cluster.job["metadata"], "generation": cluster.job["metadata"]["generation"] + 1}
    cluster.job = {**cluster.job, "metadata": metadata, "spec": {**cluster.job["spec"], **spec}}


READS = ["get", "list jobs"]
READS_OF_RUNNING = [*READS, "list pods", "read progress"]
CREATES = ["create ConfigMap", "create Job"]


def test_children_are_created_before_their_event_and_status_is_written_last() -> None:
    cluster = make_cluster()
    result, calls = reconciled(cluster)
    assert calls == [*READS, *CREATES, "create Event Preparing", "update status"]
    assert (result.before.phase, result.status.phase, result.uid) == (Phase.PENDING, Phase.PREPARING, "u")
    _, calls = reconciled(cluster)
    assert calls == READS_OF_RUNNING, "a second reconcile writes nothing"


def test_a_stop_is_reported_before_the_job_is_deleted() -> None:
    cluster = make_cluster()
    reconciled(cluster)
    edit(cluster, suspend=True)
    _, calls = reconciled(cluster)
    assert calls == [*READS_OF_RUNNING, "create Event Suspending", "delete example-r1-prepare-a1", "update status"]


REFUSALS = [
    (ApiError(403, "Forbidden", "exceeded quota"), "CannotCreate"),
    (ApiError(422, "Invalid", "not valid"), "CannotCreate"),
    (ClusterConflictError("belongs to another owner"), "ChildConflict"),
]


@pytest.mark.parametrize(("error", "reason"), REFUSALS, ids=["quota", "invalid", "conflict"])
def test_a_refused_child_is_reported_and_what_follows_it_is_not_created(error: Exception, reason: str) -> None:
    cluster = make_cluster()
    cluster.errors["create ConfigMap"] = error
    result, calls = reconciled(cluster)
    assert calls == [*READS, "create ConfigMap", f"create Event {reason}", "update status"]
    assert (result.status.phase, result.requeue_after) == (Phase.PENDING, 30.0)
    assert str(error) in str(cluster.job["status"]["conditions"])
    _, calls = reconciled(cluster)
    assert calls == [*READS, "create ConfigMap"], "the call is repeated, and the refusal is reported once"


def test_a_refused_deletion_is_reported_after_the_stop() -> None:
    cluster = make_cluster()
    reconciled(cluster)
    edit(cluster, suspend=True)
    cluster.errors["delete example-r1-prepare-a1"] = ApiError(403, "Forbidden", "no permission")
    _, calls = reconciled(cluster)
    assert calls == [
        *READS_OF_RUNNING,
        "create Event Suspending",
        "delete example-r1-prepare-a1",
        "create Event CannotCreate",
        "update status",
    ]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("create Job", ApiError(500, "InternalError", "try again")),
        ("create Job", ApiError(429, "TooManyRequests", "later", retry_after=1.0)),
        ("create Job", ApiUnreachableError("no response")),
        ("create Event Preparing", ApiError(403, "Forbidden", "no permission for Events")),
        ("update status", ApiError(422, "Invalid", "not valid")),
    ],
    ids=["server error", "too many requests", "unreachable", "Event", "status"],
)
def test_other_errors_are_raised_and_nothing_after_them_is_written(call: str, error: Exception) -> None:
    cluster = make_cluster()
    cluster.errors[call] = error
    with pytest.raises(type(error)):
        reconciled(cluster)
    assert cluster.calls[-1] == call
    assert "status" not in cluster.job


def test_events_of_pods_are_read_when_they_are_late() -> None:
    cluster = make_cluster()
    reconciled(cluster)
    _, calls = reconciled(cluster, after=19)
    assert calls == READS_OF_RUNNING
    _, calls = reconciled(cluster, after=20)
    late = [*READS_OF_RUNNING, "list Events of example-r1-prepare-a1-0"]
    assert calls == [*late, "create Event WaitingForPods", "update status"]
    edit(cluster, suspend=True)
    _, calls = reconciled(cluster, after=40)
    assert not [call for call in calls if call.startswith("list Events")], "an attempt that stops is not explained"


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        ({"training": {"learningRate": "high"}}, []),
        ({"suspend": "yes"}, ["read ConfigMap example-r1-prepare-a1"]),
        ({"budget": {"deadline": "soon"}}, ["read ConfigMap example-r1-prepare-a1"]),
    ],
    ids=["training", "suspend", "budget"],
)
def test_the_last_valid_spec_is_read_only_if_the_object_does_not_say_whether_to_stop(
    spec: dict[str, Any], reads: list[str]
) -> None:
    cluster = make_cluster()
    reconciled(cluster)
    edit(cluster, **spec)
    _, calls = reconciled(cluster)
    assert calls == ["get", *reads, *READS_OF_RUNNING[1:], "create Event InvalidSpec", "update status"]


# ---- the job policy --------------------------------------------------------------------------------------------------

NO_ACCOUNTS = parse_policy("serviceAccounts: []")
LABELS = parse_policy("{requireLabelOnSecrets: true, requireLabelOnVolumeClaims: true}")
ACCOUNT = {"workers": {"serviceAccountName": "admin"}}
NAMED = {"storage": {"credentialsSecret": "keys"}, "workers": {"cache": {"claimName": "cache"}}}
READ_LABELS = ["read labels of Secret keys", "read labels of PersistentVolumeClaim cache"]
USABLE = {name: {LABEL_USABLE: "true"} for name in ("keys", "cache")}


def accepted(cluster: RecordingCluster) -> tuple[str, str]:
    """Status and message of the condition Accepted."""
    (found,) = [entry for entry in cluster.job["status"]["conditions"] if entry["type"] == "Accepted"]
    return found["status"], found["message"]


def test_a_job_that_the_policy_refuses_starts_nothing() -> None:
    cluster = make_cluster(**ACCOUNT)
    result, calls = reconciled(cluster, policy=NO_ACCOUNTS)
    assert calls == ["get", "list jobs", "create Event InvalidSpec", "update status"]
    assert (result.status.phase, result.requeue_after) == (Phase.INVALID, None)
    assert accepted(cluster)[1].startswith("spec.workers.serviceAccountName must be a service account in")
    _, calls = reconciled(cluster)
    assert "create Job" in calls, "an operator without the policy starts it"


@pytest.mark.parametrize(
    ("policy", "spec", "reads"),
    [(NO_ACCOUNTS, ACCOUNT, []), (LABELS, NAMED, READ_LABELS)],
    ids=["a value", "a label"],
)
def test_an_attempt_that_runs_continues_when_its_job_is_refused(
    policy: JobPolicy, spec: dict[str, Any], reads: list[str]
) -> None:
    cluster = make_cluster()
    reconciled(cluster, policy=policy)
    edit(cluster, training={"learningRate": 1e-3}, **spec)
    result, calls = reconciled(cluster, policy=policy)
    assert calls == [*READS_OF_RUNNING, *reads, "create Event InvalidSpec", "update status"]
    assert (result.status.phase, accepted(cluster)[0]) == (Phase.PREPARING, "False")
    result, calls = reconciled(cluster, after=5, policy=policy)
    assert calls == [*READS_OF_RUNNING, *reads], "it is still refused, and nothing else is written"
    edit(cluster, suspend=True)
    _, calls = reconciled(cluster, after=10, policy=policy)
    assert "delete example-r1-prepare-a1" in calls, "it can be suspended"


def test_a_run_under_a_stricter_policy_continues_and_is_reported_as_refused() -> None:
    cluster = make_cluster(**ACCOUNT)
    reconciled(cluster)
    _, calls = reconciled(cluster, policy=NO_ACCOUNTS)
    assert calls == [*READS_OF_RUNNING, "create Event InvalidSpec", "update status"]


def test_labels_are_read_when_an_attempt_starts_and_not_while_it_runs() -> None:
    cluster = make_cluster(**NAMED)
    cluster.labels = USABLE
    _, calls = reconciled(cluster, policy=LABELS)
    assert calls == [*READS, *READ_LABELS, *CREATES, "create Event Preparing", "update status"]
    cluster.labels = {}
    _, calls = reconciled(cluster, after=5, policy=LABELS)
    assert calls == READS_OF_RUNNING
    edit(cluster, ttlSecondsAfterFinished=60)
    _, calls = reconciled(cluster, after=10, policy=LABELS)
    assert calls == [*READS_OF_RUNNING, *READ_LABELS, "create Event InvalidSpec", "update status"]


def test_a_job_without_references_or_a_policy_without_labels_reads_none() -> None:
    for cluster, policy in ((make_cluster(), LABELS), (make_cluster(**NAMED), parse_policy("images: []"))):
        _, calls = reconciled(cluster, policy=policy)
        assert calls == [*READS, *CREATES, "create Event Preparing", "update status"]


def test_an_object_without_the_label_is_read_again_after_a_time_because_no_event_reports_the_label() -> None:
    cluster = make_cluster(**NAMED)
    cluster.labels = {"keys": {LABEL_USABLE: "true"}, "cache": {"other": "true"}}
    result, calls = reconciled(cluster, policy=LABELS)
    assert calls == [*READS, *READ_LABELS, "create Event InvalidSpec", "update status"]
    assert (result.status.phase, result.requeue_after) == (Phase.INVALID, 30.0)
    assert accepted(cluster)[1].startswith("spec.workers.cache.claimName must name a PersistentVolumeClaim with")
    result, calls = reconciled(cluster, after=30, policy=LABELS)
    assert (calls, result.requeue_after) == ([*READS, *READ_LABELS], 30.0)
    cluster.labels = USABLE
    result, calls = reconciled(cluster, after=60, policy=LABELS)
    assert calls == [*READS, *READ_LABELS, *CREATES, "create Event Preparing", "update status"]
    assert accepted(cluster) == ("True", "")


def test_a_missing_permission_to_read_labels_is_reported_and_retried() -> None:
    cluster = make_cluster(**NAMED)
    cluster.errors[READ_LABELS[0]] = ApiError(403, "Forbidden", "secrets is forbidden")
    result, calls = reconciled(cluster, policy=LABELS)
    assert calls == [*READS, READ_LABELS[0], "create Event CannotCreate", "update status"]
    assert (result.status.phase, result.requeue_after) == (Phase.PENDING, 30.0)
    cluster.errors[READ_LABELS[0]] = ApiError(500, "InternalError", "try again")
    with pytest.raises(ApiError):
        reconciled(cluster, policy=LABELS)


def test_a_later_policy_does_not_change_the_status_of_a_run_that_has_ended() -> None:
    cluster = make_cluster(**ACCOUNT, ttlSecondsAfterFinished=60)
    complete = {"type": "Complete", "status": "True", "reason": "Succeeded", "lastTransitionTime": STAMP}
    run = {"number": 1, "specHash": run_hash(parse_job(cluster.job).spec), "completionTime": STAMP}
    cluster.job["status"] = {"phase": "Succeeded", "observedGeneration": 1, "conditions": [complete], "run": run}
    result, calls = reconciled(cluster, policy=NO_ACCOUNTS)
    assert (result.status.phase, result.status.run.children_removed) == (Phase.SUCCEEDED, True)
    assert "create Event InvalidSpec" not in calls
    edit(cluster, training={"learningRate": 1e-3})
    result, calls = reconciled(cluster, policy=NO_ACCOUNTS)
    assert (result.status.phase, calls[-2]) == (Phase.INVALID, "create Event InvalidSpec")


def test_a_run_that_has_ended_and_starts_again_without_a_change_is_checked() -> None:
    """An operator that hashes other fields may start a new run."""
    cluster = make_cluster(**ACCOUNT)
    complete = {"type": "Complete", "status": "True", "reason": "Succeeded", "lastTransitionTime": STAMP}
    run = {"number": 1, "specHash": "of another version", "completionTime": STAMP}
    cluster.job["status"] = {"phase": "Succeeded", "observedGeneration": 1, "conditions": [complete], "run": run}
    _, calls = reconciled(cluster, policy=NO_ACCOUNTS)
    assert calls == [*READS, "create Event InvalidSpec", "update status"]


def test_an_object_that_is_being_deleted_is_left_alone() -> None:
    cluster = make_cluster()
    cluster.job["metadata"]["deletionTimestamp"] = STAMP
    assert asyncio.run(reconcile(cluster, KEY, OperatorSettings(), NOW)) is None
    assert cluster.calls == ["get"]
