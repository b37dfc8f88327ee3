"""Errors of the API server, choice of the cluster, logs of pods, and retries."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.v1alpha1 import Status
from finetune_cli.cluster.errors import command_error, is_unknown_kind, missing_job
from finetune_cli.cluster.jobs import ClusterAccess
from finetune_cli.cluster.pod_logs import PodLog, ReadPosition, missing_attempts, new_entries, pod_logs
from finetune_cli.cluster.retry import Retry
from finetune_cli.exit_status import CommandError, MissingJobError
from finetune_cli.job_sources import JobSources
from finetune_operator.errors import ApiError, ApiUnreachableError
from statuses import SUCCEEDED

NO_KIND = ApiError(404, "", "404 page not found\n")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ApiUnreachableError("GET /x: refused"), 69, "the cluster is unreachable: GET /x: refused"),
        (NO_KIND, 78, "does not know FineTuneJob; install it"),
        (ApiError(404, "NotFound", "the server could not find the requested resource"), 78, "install it"),
        (
            ApiError(403, "Forbidden", "user x cannot get it"),
            77,
            "the cluster rejected the request: user x cannot get it",
        ),
        (ApiError(401, "Unauthorized", "Unauthorized"), 77, "the cluster rejected the request: Unauthorized"),
        (ApiError(503, "", "starting"), 69, "the cluster is unavailable: starting"),
        (ApiError(429, "TooManyRequests", ""), 69, "the API server returned 429 TooManyRequests"),
        (ApiError(422, "Invalid", "no"), 1, "the cluster rejected the request: no"),
    ],
)
def test_an_api_error_becomes_a_message_and_an_exit_status(error: Any, status: int, words: str) -> None:
    found = command_error(error)
    assert found.exit_status == status
    assert words in str(found)
    assert "\n" not in str(found)


def test_a_missing_object_is_not_a_missing_kind() -> None:
    assert not is_unknown_kind(ApiError(404, "NotFound", 'finetunejobs.finetune.dev "x" not found'))
    assert not is_unknown_kind(ApiError(403, "Forbidden", "no"))


@pytest.mark.parametrize(
    ("name", "known", "words"),
    [
        ("topcis", ["colors", "topics"], "did you mean topics?"),
        ("x", ["a-1", "b-2"], "; existing jobs: a-1, b-2"),
        ("x", [f"job-{n}" for n in range(9)], "job-4 and 4 more"),
        ("x", [], "the namespace has none"),
    ],
)
def test_a_missing_job_is_reported_with_similar_or_existing_names(name: str, known: list[str], words: str) -> None:
    found = missing_job(name, known, namespace="ml", where="context test")
    assert found.exit_status == 66
    assert str(found).startswith(f"there is no FineTuneJob {name} in namespace ml (context test); ")
    assert str(found).endswith(words)


def test_a_cluster_is_configured_by_a_kubeconfig_or_a_service_account(tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.touch()
    home = {"KUBECONFIG": f"{tmp_path / 'none'}:{file}"}
    assert ClusterAccess().is_configured(home)
    assert not ClusterAccess().is_configured({"KUBECONFIG": str(tmp_path / "none")})
    assert not ClusterAccess(kubeconfig=tmp_path / "none").is_configured(home)
    assert ClusterAccess(kubeconfig=file).is_configured({})
    assert ClusterAccess().is_configured({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})


def test_a_local_run_precedes_a_cluster_unless_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    here = JobSources(Path(".finetune"), ClusterAccess())
    there = JobSources(Path(".finetune"), ClusterAccess(namespace="ml"))
    with pytest.raises(MissingJobError, match="contains no runs"):
        here.local("topics")  # without a kubeconfig a cluster is not spoken of
    (tmp_path / "config").touch()
    assert here.local("topics") is None
    with pytest.raises(MissingJobError, match="contains no runs"):
        here.local(None)
    objects = tmp_path / ".finetune/jobs/default/topics/objects"
    objects.mkdir(parents=True)
    (objects / "FineTuneJob.topics.json").write_text(json.dumps({"metadata": {"name": "topics"}}))
    local = here.local("topics")
    assert local is not None
    assert (local.name, local.where, local.is_interrupted()) == ("topics", "local run in .finetune", True)
    assert there.local("topics") is None
    with pytest.raises(CommandError, match="NAME must be set"):
        there.local(None)
    with pytest.raises(MissingJobError, match="contains no runs"):
        JobSources(tmp_path / "other", ClusterAccess()).local("topics")
    with pytest.raises(CommandError, match="remove one of them"):
        JobSources(tmp_path / "other", ClusterAccess(context="x")).local("topics")


# ---- logs of pods ----------------------------------------------------------------------------------------------------


def pod(name: str, attempt: int, index: int, phase: str = "Running", **labels: str) -> dict[str, Any]:
    own = {constants.LABEL_RUN: "1", constants.LABEL_STAGE: "train", constants.LABEL_ATTEMPT: str(attempt)}
    annotations = {constants.COMPLETION_INDEX: str(index)}
    return {
        "metadata": {"name": name, "labels": own | labels, "annotations": annotations},
        "status": {"phase": phase},
    }


RUNNING = PodLog(run=1, stage=Stage.TRAIN, attempt=1, index=0, pod="p", has_ended=False)
ENDED = PodLog(run=1, stage=Stage.TRAIN, attempt=1, index=0, pod="p", has_ended=True)


def test_pods_are_sorted_and_other_pods_are_ignored() -> None:
    pods = [pod("b", 10, 1), pod("a", 10, 0, "Failed"), pod("old", 9, 0), pod("x", 1, 0, **{constants.LABEL_RUN: "?"})]
    found = pod_logs([*pods, {"metadata": {"name": "bare"}}])
    assert [(log.pod, log.has_ended) for log in found] == [("old", False), ("a", True), ("b", False)]


@pytest.mark.parametrize(
    ("status", "waiting_reason"),
    [
        ({"phase": "Running"}, ""),
        ({"phase": "Failed"}, ""),
        ({}, "it has not been scheduled yet"),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}]}, "no node"),
        (
            {
                "conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status"}],
                "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}],
            },
            "ImagePullBackOff",
        ),
    ],
)
def test_a_pod_that_has_not_started_has_a_waiting_reason(status: dict[str, Any], waiting_reason: str) -> None:
    (log,) = pod_logs([pod("p", 1, 0) | {"status": status}])
    assert log.waiting_reason == waiting_reason


def test_a_line_without_a_time_has_the_timestamp_of_the_kubelet() -> None:
    said = json.dumps({"time": "2026-01-01T12:00:00.500+00:00", "rank": 3, "level": "INFO", "message": "hello"})
    text = f"2026-01-01T14:00:01.123456789+02:00 {said}\n2026-01-01T14:00:02.000000000+02:00 no json\n"
    first, second = new_entries(RUNNING, text, ReadPosition())[0]
    assert (first.time, first.rank, first.text) == ("2026-01-01T12:00:00.500+00:00", 3, "hello")
    assert (second.time, second.text) == ("2026-01-01T12:00:02.000+00:00", "no json")


def test_the_next_read_returns_only_new_lines() -> None:
    """sinceTime has a resolution of seconds, so the API server repeats some lines."""
    lines = [f"2026-01-01T12:00:0{second}Z line {n}\n" for n, second in enumerate((1, 2, 2, 2, 3))]
    entries, position = new_entries(RUNNING, "".join(lines[:3]), ReadPosition())
    assert [entry.text for entry in entries] == ["line 0", "line 1", "line 2"]
    entries, position = new_entries(RUNNING, "".join(lines[1:4]), position)
    assert [entry.text for entry in entries] == ["line 3"]
    assert new_entries(RUNNING, "".join(lines[1:4]), position) == ([], position)
    entries, position = new_entries(RUNNING, "".join(lines[1:]), position)
    assert [entry.text for entry in entries] == ["line 4"]
    assert position == ReadPosition("2026-01-01T12:00:03Z", 1)


def test_a_line_separator_in_a_message_cannot_forge_a_timestamp() -> None:
    text = "2026-01-01T12:00:01Z one\u20282026-01-01T09:00:00Z forged\x85more\n2026-01-01T12:00:02Z two\n"
    entries, position = new_entries(RUNNING, text, ReadPosition())
    assert [entry.time[11:19] for entry in entries] == ["12:00:01", "12:00:02"]
    assert position == ReadPosition("2026-01-01T12:00:02Z", 1)


def test_an_incomplete_line_is_kept_back_while_the_pod_runs() -> None:
    text = "2026-01-01T12:00:01Z whole\n2026-01-01T12:00:02Z ha"
    assert [entry.text for entry in new_entries(RUNNING, text, ReadPosition())[0]] == ["whole"]
    assert [entry.text for entry in new_entries(ENDED, text, ReadPosition())[0]] == ["whole", "ha"]


@pytest.mark.parametrize(
    ("attempts_there", "stage", "number", "missing"),
    [
        ([1, 2], Stage.TRAIN, None, []),
        ([1], Stage.TRAIN, None, ["train 2"]),
        ([], Stage.TRAIN, 1, ["train 1"]),
        ([1], Stage.TRAIN, 1, []),
        ([], Stage.TRAIN, 9, []),
        ([2], None, None, ["prepare 1", "train 1", "evaluate 1"]),
    ],
)
def test_attempts_without_pods_are_reported_as_missing(
    attempts_there: list[int], stage: Stage | None, number: int | None, missing: list[str]
) -> None:
    attempts = Status.read(SUCCEEDED).run.attempts
    found = pod_logs([pod(f"p{attempt}", attempt, 0) for attempt in attempts_there])
    gone = missing_attempts(attempts, 1, found, stage=stage, number=number)
    assert [f"{entry.stage} {entry.number}" for entry in gone] == missing


# ---- retries ---------------------------------------------------------------------------------------------------------


class Flaky:
    """Returns the given answers one after another."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.reports: list[str] = []
        self.pauses: list[float] = []

    async def call(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def ask(self, times: int, **options: Any) -> list[Any]:
        retry = Retry(self.reports.append, pause=self.pause, **options)
        return [await retry.call(self.call) for _ in range(times)]


def test_a_request_is_retried_while_the_cluster_is_unreachable() -> None:
    away = [ApiUnreachableError("reset"), ApiError(503, "", "starting"), ApiUnreachableError("reset")]
    server = Flaky(1, *away, 2)
    assert asyncio.run(server.ask(2)) == [1, 2]
    assert server.reports == ["the cluster is unreachable: reset; retrying", "the cluster is reachable again"]
    assert server.pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answers", "options"),
    [
        ([ApiUnreachableError("never there")], {}),
        ([1, ApiError(403, "Forbidden", "no")], {}),
        ([1, ApiUnreachableError("gone"), ApiUnreachableError("gone")], {"seconds": -1.0}),
    ],
    ids=["at the first call", "refused", "too long"],
)
def test_retries_end_at_a_permanent_error_or_a_time_out(answers: list[Any], options: dict[str, Any]) -> None:
    with pytest.raises((ApiError, ApiUnreachableError)):
        asyncio.run(Flaky(*answers).ask(2, **options))
