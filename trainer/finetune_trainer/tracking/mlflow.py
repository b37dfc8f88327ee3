"""An MLflow server: one MLflow run for each run of a job, over all attempts and evaluations."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from finetune_api.v1alpha1 import MLflow

from ..store import ObjectStore
from .base import TRACKERS, LogEntry, Outcome, RunResult, Session, TrackedRun, Tracker

RUN_TAG = "finetune.run_id"
"""Tag by which the MLflow run is found again: a digest of the folder of the run."""

_SETTINGS = {
    # Time limits: the defaults are 120 s and 7 retries for each request.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # A server could send the credentials elsewhere.
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables of MLflow, unless `workers.env` sets them."""

_STATUS = {Outcome.STOPPED: "KILLED", Outcome.FAILED: "FAILED", Outcome.EVALUATED: "FINISHED"}
_MOST_METRICS = 1000
_MOST_PARAMETERS = 100
_MAX_VALUE = 500
"""Limits of MLflow for one request, and for the value of a parameter in older servers."""


@TRACKERS.register
class MLflowTracker(Tracker):
    """`spec.tracking.mlflow`."""

    name: ClassVar[str] = "mlflow"
    module: ClassVar[str] = "mlflow"
    distribution: ClassVar[str] = "mlflow-skinny"
    has_results: ClassVar[bool] = True

    def open(self, block: MLflow, run: TrackedRun, store: ObjectStore, scratch: Path) -> Session:
        """Find or create the MLflow run."""
        del store, scratch
        return _MLflowRun(client_of(block.tracking_uri), block.experiment, run)


def is_installed() -> bool:
    """Whether the client library is installed. It is not imported."""
    return TRACKERS[MLflowTracker.name].is_installed


def client_of(tracking_uri: str) -> Any:
    """Return a client with time limits. Credentials are those of the environment."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


class _MLflowRun(Session):
    """An MLflow run has one value for each metric and step.

    MLflow keeps every value that it gets. Steps that an earlier attempt has logged are therefore left out, and steps
    that it could not log are logged by the next attempt or by the evaluation, from the log of the run.
    """

    def __init__(self, client: Any, experiment: str, run: TrackedRun) -> None:
        self._client = client
        self._id = _find_or_create(client, _experiment_id(client, experiment), run)
        stored = client.get_run(self._id).data
        self._log_parameters({name: value for name, value in run.parameters.items() if name not in stored.params})
        self._logged = {
            (name, metric.step) for name in stored.metrics for metric in client.get_metric_history(self._id, name)
        }
        client.update_run(self._id, status="RUNNING")

    def _log_parameters(self, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        found = [Param(name, value[:_MAX_VALUE]) for name, value in parameters.items()]
        for start in range(0, len(found), _MOST_PARAMETERS):
            self._client.log_batch(self._id, params=found[start : start + _MOST_PARAMETERS])

    def log(self, entries: Sequence[LogEntry]) -> None:
        self._log_metrics([(name, value, entry) for entry in entries for name, value in entry.metrics.items()])

    def _log_metrics(self, values: Sequence[tuple[str, float, LogEntry]]) -> None:
        from mlflow.entities import Metric

        new = [one for one in values if (one[0], one[2].step) not in self._logged]
        for start in range(0, len(new), _MOST_METRICS):
            part = new[start : start + _MOST_METRICS]
            # The time is that of the entry: a server ignores a repeated value with equal time and step.
            metrics = [Metric(name, value, round(1000 * entry.time), entry.step) for name, value, entry in part]
            self._client.log_batch(self._id, metrics=metrics)
            self._logged.update((name, entry.step) for name, _, entry in part)

    def saved(self) -> None:
        """Do nothing: everything was sent."""

    def result(self, result: RunResult) -> None:
        stored = self._client.get_run(self._id).data.metrics
        for name, value in result.metrics.items():
            if stored.get(name) != value:  # another evaluation may have other metrics
                self._client.log_metric(self._id, name, value, step=result.step)
        for name, text in result.tags.items():
            self._client.set_tag(self._id, name, text)

    def end(self, outcome: Outcome) -> None:
        if outcome in _STATUS:
            self._client.set_terminated(self._id, status=_STATUS[outcome])


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another job has created it at the same time
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ValueError(f"the experiment {name} is deleted; restore it or name another one")
    return str(found.experiment_id)


def _find_or_create(client: Any, experiment: str, run: TrackedRun) -> str:
    found = client.search_runs([experiment], filter_string=f"tags.`{RUN_TAG}` = '{run.key}'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    return str(client.create_run(experiment, run_name=run.name, tags={**run.tags, RUN_TAG: run.key}).info.run_id)
