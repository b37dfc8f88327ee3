"""Metrics of the operator and their labels."""

from prometheus_client import generate_latest

from finetune_api.v1alpha1 import AttemptStatus, Outcome, Status
from finetune_operator.cache.job_cache import JobCache
from finetune_operator.controller.metrics import Metrics
from finetune_operator.manifests import JobKey
from statuses import make_status


def attempt(number: int, **fields: object) -> AttemptStatus:
    return AttemptStatus(
        stage="train", number=number, job_name=f"topics-r1-train-a{number}", start_time="2026-01-01T00:00:10Z", **fields
    )


FIRST = attempt(1, first_step_time="2026-01-01T00:00:20Z")
ENDED = attempt(
    1,
    first_step_time="2026-01-01T00:00:20Z",
    end_time="2026-01-01T00:01:00Z",
    outcome=Outcome.RETRYABLE,
    reason="OutOfMemory",
)
SECOND = attempt(2, first_step_time="2026-01-01T00:01:04Z")


def status(*attempts: AttemptStatus) -> Status:
    return make_status(run=1, start_time="2026-01-01T00:00:00Z", attempts=attempts)


def lines_of(metrics: Metrics) -> list[str]:
    return generate_latest(metrics.registry).decode().splitlines()


def test_transitions_are_counted_once_and_restarts_are_timed() -> None:
    metrics = Metrics()
    life = [status(), status(attempt(1)), status(FIRST), status(ENDED, attempt(2)), status(ENDED, SECOND)]
    for before, after in zip(life, life[1:] + life[-1:], strict=True):
        metrics.record_transition(before, after)
    lines = lines_of(metrics)
    for expected in (
        'finetune_attempts_ended_total{outcome="Retryable",reason="OutOfMemory",stage="train"} 1.0',
        "finetune_time_to_first_step_seconds_count 1.0",
        "finetune_time_to_first_step_seconds_sum 20.0",
        "finetune_restart_seconds_count 1.0",
        "finetune_restart_seconds_sum 4.0",
    ):
        assert expected in lines
    assert "topics" not in "\n".join(lines)


def test_every_phase_has_a_line_even_without_jobs() -> None:
    metrics, table = Metrics(), JobCache()
    metrics.show_jobs(table.phases)
    table.record(JobKey("ml", "topics"), {"metadata": {"generation": 1}, "status": {"phase": "Training"}})
    lines = lines_of(metrics)
    assert 'finetune_jobs{phase="Training"} 1.0' in lines
    assert 'finetune_jobs{phase="Failed"} 0.0' in lines


def test_names_are_those_of_controller_runtime() -> None:
    metrics = Metrics()
    metrics.show_queue(lambda: 3, lambda: 1.5)
    metrics.show_workers(8, lambda: 2, lambda: 0.25)
    metrics.added()
    metrics.taken(0.01)
    metrics.retried()
    metrics.reconciled("error", 0.2)
    metrics.called("PUT", 409)
    lines = lines_of(metrics)
    for expected in (
        'workqueue_depth{name="finetunejob"} 3.0',
        'workqueue_adds_total{name="finetunejob"} 1.0',
        'workqueue_retries_total{name="finetunejob"} 1.0',
        'workqueue_queue_duration_seconds_count{name="finetunejob"} 1.0',
        'workqueue_longest_running_processor_seconds{name="finetunejob"} 0.25',
        'controller_runtime_active_workers{controller="finetunejob"} 2.0',
        'controller_runtime_reconcile_total{controller="finetunejob",result="error"} 1.0',
        'controller_runtime_reconcile_errors_total{controller="finetunejob"} 1.0',
        'rest_client_requests_total{code="409",method="PUT"} 1.0',
    ):
        assert expected in lines
