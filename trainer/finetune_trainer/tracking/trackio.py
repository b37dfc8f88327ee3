"""trackio: one run of trackio for each run of a job, over all attempts and evaluations, on a server.

The entries are sent with the HTTP interface of the server. The library is not used: it gives every entry a random
identifier, so that a step that is trained again would have two rows, and it keeps entries in files and threads.
"""

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetune_api.v1alpha1 import Trackio

from ..store import ObjectStore
from .base import TRACKERS, LogEntry, Outcome, RunResult, Session, TrackedRun, Tracker

_WRITE_TOKEN = "TRACKIO_WRITE_TOKEN"
_TIMEOUT_SECONDS = 10.0
_MAX_ANSWER = 64 * 1024


@TRACKERS.register
class TrackioTracker(Tracker):
    """`spec.tracking.trackio`."""

    name: ClassVar[str] = "trackio"
    has_results: ClassVar[bool] = True

    def open(self, block: Trackio, run: TrackedRun, store: ObjectStore, scratch: Path) -> Session:
        """Prepare to send. The first request is that of the first entries. Raises ValueError without a token."""
        del store, scratch
        token = os.environ.get(_WRITE_TOKEN)
        if not token:
            raise ValueError(f"{_WRITE_TOKEN} is not set; set it in spec.workers.env from a Secret")
        return _TrackioRun(_Server(block.server_url, token), block.project, run)


class _Server:
    """The HTTP interface of trackio 0.43. Redirects are not followed, because the token would be sent elsewhere."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json", "X-Trackio-Write-Token": token}
        self._opener = urllib.request.build_opener(_NoRedirects)

    def call(self, name: str, **arguments: Any) -> Any:
        """Return the result of a function of the server. Raises OSError, or RuntimeError with the server's message."""
        body = json.dumps({"args": [], "kwargs": arguments}).encode()
        request = urllib.request.Request(f"{self._url}/api/{name}", data=body, headers=self._headers)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                answer = json.loads(response.read(_MAX_ANSWER))
        except urllib.error.HTTPError as error:
            error.close()  # it has the connection
            raise
        if answer.get("error") is not None:
            raise RuntimeError(str(answer["error"]))
        return answer.get("data")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any) -> None:
        """Return no request, so that the redirect is an HTTPError."""


class _TrackioRun(Session):
    """A run of trackio has one row for each entry.

    Each row has an identifier that is the same in every attempt, and the server ignores a row whose identifier it has.
    """

    def __init__(self, server: _Server, project: str, run: TrackedRun) -> None:
        self._server = server
        self._project = project
        self._run = run
        self._config: Mapping[str, str] | None = {**run.parameters, **run.tags}
        """Sent with the next row."""

    def log(self, entries: Sequence[LogEntry]) -> None:
        self._send([self._row(entry.step, entry.metrics, _digest(sorted(entry.metrics))) for entry in entries])

    def saved(self) -> None:
        """Do nothing: everything was sent."""

    def result(self, result: RunResult) -> None:
        self._config = {**self._run.parameters, **self._run.tags, **result.tags}
        # By value, because another evaluation of the same model may have other metrics.
        self._send([self._row(result.step, result.metrics, _digest(sorted(result.metrics.items())))])

    def end(self, outcome: Outcome) -> None:
        """Do nothing: a run of trackio has no state."""

    def _row(self, step: int, metrics: Mapping[str, float], content: str) -> dict[str, Any]:
        return {
            "project": self._project,
            "run": self._run.name,
            "run_id": self._run.key,
            "step": step,
            "metrics": dict(metrics),
            "log_id": f"{self._run.key}-{step}-{content}",
        }

    def _send(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if self._config is not None:
            rows[0]["config"] = dict(self._config)
        self._server.call("bulk_log", logs=rows, hf_token=None)
        self._config = None


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
