"""`spec.data.cleaning.redact`: replaces personal data with placeholders, in all splits."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.v1alpha1 import Redaction, Spec

from ..pipeline import EMPTIED_HELD_OUT, DataStep, Phase
from ..redaction import PLACEHOLDERS, redacted

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class Parameters:
    """What is replaced, sorted."""

    kinds: tuple[Redaction, ...]


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    kinds = spec.data.cleaning.redact
    return Parameters(tuple(sorted(set(kinds)))) if kinds else None


def apply(parameters: Parameters, text: str) -> str:
    """The text with placeholders."""
    return redacted(text, parameters.kinds)


def is_emptied(_: Parameters, texts: Sequence[str]) -> bool:
    """Whether the record has no word except placeholders."""
    return not any(_WORD.search(PLACEHOLDERS.sub("", text)) for text in texts)


def report(counts: Counter[str]) -> tuple[str, ...]:
    """A remark on held-out records without words, which are kept because a step must not change what is measured."""
    emptied = counts[EMPTIED_HELD_OUT]
    if not emptied:
        return ()
    return (
        f"redaction left {emptied:,} records of the validation and test files with nothing but placeholders: they are "
        "kept, and make the metrics less reliable; remove them from the files",
    )


def shown(_before: str, after: str) -> str:
    """The placeholders alone: what is next to them may identify a person as well."""
    return " ".join(PLACEHOLDERS.findall(after)[:5])


STEP = DataStep(
    "redaction",
    version=2,
    order=30,
    parameters=parameters,
    apply=apply,
    report=report,
    phase=Phase.TEXTS,
    is_emptied=is_emptied,
    shown=shown,
)
