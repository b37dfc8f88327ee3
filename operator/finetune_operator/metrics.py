"""Prometheus metrics. Names of controller-runtime where it has one, so that dashboards for controllers fit; never the
name of a job as a label: a cluster's life has more of them than a time series database likes."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from finetune_api.constants import GROUP

_CONTROLLER = "finetunejob"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """All metrics of one operator, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._passes = Counter(
            "controller_runtime_reconcile",
            "Reconcile passes by result.",
            ["controller", "result"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Length of a reconcile pass.",
            ["controller"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.depth = Gauge("workqueue_depth", "Keys that wait.", ["name"], registry=self.registry).labels(_CONTROLLER)
        self.oldest = Gauge(
            "workqueue_oldest_waiting_seconds", "How long the first key has waited.", ["name"], registry=self.registry
        ).labels(_CONTROLLER)
        self._api = Counter(
            "rest_client_requests",
            "Calls to the API server by method and answer; code 0: no answer.",
            ["method", "code"],
            registry=self.registry,
        )
        self.jobs = Gauge("finetune_jobs", f"Objects of {GROUP} that the watch shows.", registry=self.registry)
        self._attempts = Counter(
            "finetune_attempts_ended",
            "Ended attempts by stage and outcome.",
            ["stage", "outcome"],
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "finetune_event_loop_lag_seconds", "How late the event loop ran last.", registry=self.registry
        )

    def reconciled(self, result: str, seconds: float) -> None:
        """A pass has ended: `success`, `requeue_after` or `error`."""
        self._passes.labels(_CONTROLLER, result).inc()
        self._seconds.labels(_CONTROLLER).observe(seconds)

    def called(self, method: str, status: int) -> None:
        """A call to the API server was answered; 0: it was not."""
        self._api.labels(method, str(status)).inc()

    def attempt_ended(self, stage: str, outcome: str) -> None:
        """An attempt was judged."""
        self._attempts.labels(stage, outcome).inc()
