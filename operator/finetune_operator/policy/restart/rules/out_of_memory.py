"""The second out-of-memory exit of a run (80): halve the micro-batch, keep the global batch.

A pod exits with 80 if an allocation fails or if the kernel kills a rank. An exit with 137, after the kernel has killed
the whole container, is not counted.
"""

from finetune_api.constants import Stage
from finetune_api.exit_codes import ExitCode
from finetune_api.v1alpha1 import AttemptStatus

from ..rule import Failure, PlanChange, Retry, Rule

_SECOND = 2


def _decide(failure: Failure) -> Retry | None:
    attempt, plan = failure.attempt, failure.attempt.plan
    if not _is_out_of_memory(attempt) or plan is None or (plan.micro_batch_size or 1) < 2:
        return None
    if sum(_is_out_of_memory(entry) for entry in failure.status.run.attempts) < _SECOND:
        return None
    smaller = (plan.micro_batch_size or 1) // 2
    reason = f"micro-batch halved to {smaller} after the second out-of-memory exit"
    return failure.retry(failure.status.run.restarts, PlanChange(reason, micro_batch_limit=smaller))


def _is_out_of_memory(attempt: AttemptStatus) -> bool:
    return attempt.stage is Stage.TRAIN and attempt.exit_code == ExitCode.OUT_OF_MEMORY


RULE = Rule("out of memory", 350, _decide)
