"""`spec.data.cleaning.whitespace`: one space between words, no space around lines, at most one blank line."""

import re
from dataclasses import dataclass

from finetune_api.v1alpha1 import Spec

from ..pipeline import DataStep, Phase

_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Parameters:
    """The step has no parameters."""


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    return Parameters() if spec.data.cleaning.whitespace else None


def apply(_: Parameters, text: str) -> str:
    """The text with the same words and lines."""
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return _BLANK_LINES.sub("\n\n", lines).strip("\n")


STEP = DataStep("white space", version=1, order=20, parameters=parameters, apply=apply, phase=Phase.TEXTS)
