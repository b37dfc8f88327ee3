"""Record formats of training data. One file per format; `FORMATS[name]` returns it.

A format is a class that derives from `RecordFormat` and is registered with `@FORMATS.register`. Its name is in
`finetune_api.v1alpha1.data`, the tasks that accept it are in the support table (`v1alpha1.tasks`).
"""

from .base import FORMATS, Example, Formatter, RecordFormat, TemplateUse
from .detect import detect_format

__all__ = ["FORMATS", "Example", "Formatter", "RecordFormat", "TemplateUse", "detect_format"]
