"""Prometheus metrics, with the names of controller-runtime where they exist, so that its dashboards can be used.

Names of jobs are not used as labels, because their number is not limited.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api.constants import GROUP
from finetune_api.v1alpha1 import Status

from ..policy import transitions

_CONTROLLER = "finetunejob"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TRAINING_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 2560.0)


class Metrics:
    """All metrics of one operator, in a separate registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._passes = self._counter("controller_runtime_reconcile", "Reconciles by result.", "result")
        self._errors = self._counter("controller_runtime_reconcile_errors", "Reconciles that failed and are retried.")
        self._seconds = self._histogram("controller_runtime_reconcile_time_seconds", "Duration of a reconcile.")
        self._adds = self._counter("workqueue_adds", "Keys added to the queue.", owner="name")
        self._retries = self._counter("workqueue_retries", "Keys added again after a failure.", owner="name")
        self._waits = self._histogram(
            "workqueue_queue_duration_seconds", "Time that a key waited for a worker.", owner="name"
        )
        self._work = self._histogram("workqueue_work_duration_seconds", "Time that a worker used a key.", owner="name")
        self._api = Counter(
            "rest_client_requests",
            "Requests to the API server by method and status code; code 0: no response.",
            ["method", "code"],
            registry=self.registry,
        )
        self._attempts = Counter(
            "finetune_attempts_ended",
            "Ended attempts by stage, outcome and exit class.",
            ["stage", "outcome", "reason"],
            registry=self.registry,
        )
        self._first_steps = self._histogram(
            "finetune_time_to_first_step_seconds",
            "Time from the start of a run to its first optimizer step.",
            training=True,
        )
        self._restarts = self._histogram(
            "finetune_restart_seconds",
            "Time from the end of an attempt to the first optimizer step of the next.",
            training=True,
        )
        self.loop_lag = Gauge(
            "finetune_event_loop_lag_seconds", "Last measured lag of the event loop.", registry=self.registry
        )

    def _counter(self, metric: str, text: str, *labels: str, owner: str = "controller") -> Counter:
        return Counter(metric, text, [owner, *labels], registry=self.registry)

    def _histogram(self, metric: str, text: str, *, owner: str = "controller", training: bool = False) -> Histogram:
        buckets = _TRAINING_SECONDS if training else _SECONDS
        return Histogram(metric, text, [] if training else [owner], buckets=buckets, registry=self.registry)

    def _show(self, name: str, text: str, value: Callable[[], float], label: str = "name") -> None:
        """Register a gauge that is evaluated when metrics are collected."""
        Gauge(name, text, [label], registry=self.registry).labels(_CONTROLLER).set_function(value)

    def show_queue(self, depth: Callable[[], float], oldest: Callable[[], float]) -> None:
        """Register the metrics of the queue."""
        self._show("workqueue_depth", "Keys that wait for a worker.", depth)
        self._show("workqueue_oldest_waiting_seconds", "Time that the oldest key has waited.", oldest)

    def show_workers(self, most: int, active: Callable[[], float], longest: Callable[[], float]) -> None:
        """Register the metrics of the workers."""
        self._show("controller_runtime_max_concurrent_reconciles", "Number of workers.", lambda: most, "controller")
        self._show("controller_runtime_active_workers", "Workers that process a key.", active, "controller")
        self._show("workqueue_longest_running_processor_seconds", "Age of the oldest reconcile in progress.", longest)

    def show_leader(self, is_leader: Callable[[], bool]) -> None:
        """Register whether this replica reconciles, with the name of client-go."""
        self._show("leader_election_master_status", "1: this replica reconciles; 0: it is a standby.", is_leader)

    def show_jobs(self, phases: Callable[[], Mapping[str, int]]) -> None:
        """Register the number of jobs by phase."""
        text = f"Objects of {GROUP} by phase."
        self.registry.register(_Shown("finetune_jobs", text, "phase", phases))

    def show_watches(self, ages: Callable[[], Mapping[str, float]]) -> None:
        """Register the age of the last watch events."""
        text = "Time since the last event of a watch."
        self.registry.register(_Shown("finetune_watch_last_event_age_seconds", text, "kind", ages))

    def added(self) -> None:
        """A key was added to the queue."""
        self._adds.labels(_CONTROLLER).inc()

    def taken(self, waited: float) -> None:
        """A worker took a key."""
        self._waits.labels(_CONTROLLER).observe(waited)

    def retried(self) -> None:
        """A key was put back after a failure."""
        self._retries.labels(_CONTROLLER).inc()
        self._errors.labels(_CONTROLLER).inc()

    def reconciled(self, result: str, seconds: float) -> None:
        """Record a reconcile with its result: `success`, `requeue`, `requeue_after` or `error`."""
        self._passes.labels(_CONTROLLER, result).inc()
        self._seconds.labels(_CONTROLLER).observe(seconds)
        self._work.labels(_CONTROLLER).observe(seconds)

    def called(self, method: str, status: int) -> None:
        """Count a request to the API server; status 0: no response."""
        self._api.labels(method, str(status)).inc()

    def record_transition(self, before: Status, after: Status) -> None:
        """Record the transitions of a job in a reconcile."""
        for attempt in transitions.ended(before, after):
            self._attempts.labels(attempt.stage, attempt.outcome, attempt.reason).inc()
        for step in transitions.first_steps(before, after):
            if step.attempt.number == 1 and after.run.start_time:
                self._first_steps.observe(_seconds_between(after.run.start_time, step.time))
            elif step.cost is not None:
                self._restarts.observe(step.cost.restart_seconds)


class _Shown(Collector):
    """A gauge with one value per label, evaluated when metrics are collected."""

    def __init__(self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._text, self._label, self._values = name, text, label, values

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        for key, value in sorted(self._values().items()):
            family.add_metric([key], value)
        yield family


def _seconds_between(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
