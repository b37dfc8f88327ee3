"""Every other failure is retried, at most `restart.maxRestarts` times since the stage's last new checkpoint."""

from ..rule import Failure, Retry, Rule


def _decide(failure: Failure) -> Retry:
    return failure.retry(failure.status.run.restarts)


RULE = Rule("retry", 900, _decide)
