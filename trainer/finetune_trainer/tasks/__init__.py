"""What a model is trained for. One file per task; `TASKS[name]` finds it.

A task is a class that derives from `TrainingTask` and is registered with `@TASKS.register`. Its row in the support
table (data formats, metrics, prompts) is in `finetune_api.v1alpha1.tasks`.
"""

from .base import IGNORED, TASKS, TrainingTask

__all__ = ["IGNORED", "TASKS", "TrainingTask"]
