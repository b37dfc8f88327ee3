"""More failures than `restart.maxRestarts` since the stage's last new checkpoint."""

from finetune_api.constants import Reason

from ..rule import Failure, GiveUp, Rule


def _decide(failure: Failure) -> GiveUp | None:
    restarts = failure.status.run.restarts
    if restarts <= failure.limits.max_restarts:
        return None
    return GiveUp(Reason.RESTARTS_EXHAUSTED, f"failed {restarts} times without a new checkpoint in between")


RULE = Rule("restarts exhausted", 300, _decide)
