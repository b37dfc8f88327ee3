"""Detects overfitting from the losses of training and validation. Pure.

With the validation loss V and the mean training loss T since the previous evaluation, and V' and T' at the evaluation
with the lowest validation loss, an evaluation shows overfitting if

- V / V' - 1 >= minRise: the generalization loss GL of Prechelt 1998, "Early Stopping - But When?" (in Neural Networks:
  Tricks of the Trade), section 2, as a share instead of percent,
- T < T': the training still fits its data better, so that the rise is no divergence (for that, see `loss_watch`), and
- 1 - T / V >= maxGap: the gap between both losses, as a share of the validation loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, Self

from finetune_api.progress import OverfittingEvidence
from finetune_api.v1alpha1 import Overfitting


@dataclass(frozen=True)
class OverfittingWatch:
    """Losses seen so far. Saved in every checkpoint, so that counting continues after a restart."""

    lowest: float | None = None
    """Lowest validation loss."""
    lowest_step: int = 0
    training_loss: float = 0.0
    """Training loss at that evaluation."""
    count: int = 0
    """Consecutive evaluations that show overfitting, up to the newest."""
    found: str = ""
    """Description with the losses, of the first time that `patience` evaluations agreed. Empty: not yet."""
    evidence: OverfittingEvidence | None = None
    """The losses of that evaluation; until then, of the newest one. None: there was none, or only an earlier version of
    the trainer has seen any."""

    def after(self, validation_loss: float, training_loss: float, step: int, rule: Overfitting) -> "OverfittingWatch":
        """Return the state after one more evaluation."""
        after = self._counted(validation_loss, training_loss, step, rule)
        if self.found:
            return after
        assert after.lowest is not None
        evidence = OverfittingEvidence(
            found=bool(after.found),
            step=step,
            validation_loss=validation_loss,
            training_loss=training_loss,
            lowest_step=after.lowest_step,
            lowest_validation_loss=after.lowest,
            training_loss_at_lowest=after.training_loss,
        )
        return replace(after, evidence=evidence)

    def _counted(self, validation_loss: float, training_loss: float, step: int, rule: Overfitting) -> Self:
        if self.lowest is None or validation_loss < self.lowest:
            return replace(self, lowest=validation_loss, lowest_step=step, training_loss=training_loss, count=0)
        has_risen = validation_loss >= self.lowest * (1.0 + rule.min_rise)
        has_gap = training_loss <= validation_loss * (1.0 - rule.max_gap)
        if not (has_risen and has_gap and training_loss < self.training_loss):
            return replace(self, count=0)
        count = self.count + 1
        is_first = not self.found and count >= rule.patience
        return replace(
            self,
            count=count,
            found=self._description(validation_loss, training_loss, step) if is_first else self.found,
        )

    def stored(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        evidence = None if self.evidence is None else self.evidence.model_dump()
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"evidence": evidence}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "OverfittingWatch":
        """Return a stored state. Those of earlier versions have no evidence."""
        evidence = stored.get("evidence")
        read = None if evidence is None else OverfittingEvidence.model_validate(evidence)
        return cls(**(stored | {"evidence": read}))

    def _description(self, validation_loss: float, training_loss: float, step: int) -> str:
        return (
            f"the training overfits: from step {self.lowest_step} to step {step}, the validation loss rose from "
            f"{self.lowest:.4g} to {validation_loss:.4g}, while the training loss fell from {self.training_loss:.4g} "
            f"to {training_loss:.4g}; add data, or train for fewer steps"
        )


def training_loss_before_evaluation(log: Sequence[dict[str, float]]) -> float:
    """Return the mean logged training loss since the previous evaluation. The last entry of the log is an evaluation.

    If no loss was logged since then, the period before it counts too. The loss of the first step always is.
    """
    losses: list[float] = []
    for entry in reversed(log[:-1]):
        if "eval_loss" in entry and losses:
            break
        if "loss" in entry:
            losses.append(entry["loss"])
    return fmean(losses)
