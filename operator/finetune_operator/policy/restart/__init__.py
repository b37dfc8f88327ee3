"""Decide what follows a failed attempt with an ordered table of rules, like the failure policy of a JobSet.

Each module of `rules` declares one `RULE`. The first rule in ascending order whose condition holds decides; the last
rule always applies. To add a rule, add a module.
"""

import importlib
import pkgutil
from functools import cache

from finetune_api.v1alpha1 import Restart, Status

from . import rules as _modules
from .rule import Action, Failure, GiveUp, PlanChange, Retry, Rule, disruptions_in_a_row, identical_failures

__all__ = ["Action", "GiveUp", "PlanChange", "Retry", "decide", "disruptions_in_a_row", "identical_failures", "rules"]


@cache
def rules() -> tuple[Rule, ...]:
    """All rules, in the order in which they are tried. Raises ValueError for two rules of the same order."""
    names = sorted(module.name for module in pkgutil.iter_modules(_modules.__path__))
    found: list[Rule] = [importlib.import_module(f"{_modules.__name__}.{name}").RULE for name in names]
    found.sort(key=lambda rule: rule.order)
    if len({rule.order for rule in found}) < len(found):
        raise ValueError(f"restart rules must have different orders: {[(rule.order, rule.name) for rule in found]}")
    return tuple(found)


def decide(status: Status, limits: Restart, *, max_backoff_seconds: float) -> Action:
    """Decide what follows the last attempt, which has failed. `status` must already count its end."""
    failure = Failure(status, limits, max_backoff_seconds)
    return next(action for rule in rules() if (action := rule.decide(failure)) is not None)
