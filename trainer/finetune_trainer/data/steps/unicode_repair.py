"""`spec.data.cleaning.unicode`: repairs text that was decoded with the wrong encoding, and removes control characters.

ASCII text without control characters needs no repair and is not passed to ftfy, which is slow.
"""

import re
from dataclasses import dataclass

import ftfy

from finetune_api.v1alpha1 import Spec

from ..pipeline import DataStep, Phase

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_CONFIG = ftfy.TextFixerConfig(
    # Only what is an error in any text: quotes, ligatures, wide letters and HTML entities may be intended.
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    normalization=None,
    explain=False,
)


@dataclass(frozen=True)
class Parameters:
    """The step has no parameters; the version of the library is one, because another one may repair other texts."""

    ftfy: str


def parameters(spec: Spec) -> Parameters | None:
    """None: the step is not enabled."""
    return Parameters(ftfy.__version__) if spec.data.cleaning.unicode else None


def apply(_: Parameters, text: str) -> str:
    """The repaired text."""
    if text.isascii() and not _CONTROL.search(text):
        return text
    return ftfy.fix_text(text, _CONFIG)


STEP = DataStep("unicode repair", version=1, order=10, parameters=parameters, apply=apply, phase=Phase.TEXTS)
