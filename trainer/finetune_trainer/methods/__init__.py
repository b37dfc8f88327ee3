"""How a model is fine-tuned. One file per method; `METHODS[name]` finds it.

A method is a class that derives from `FineTuningMethod`, or from `AdapterMethod` where PEFT implements it, and is
registered with `@METHODS.register`. Its settings and its row in the support table are its block in
`finetune_api.v1alpha1.methods`.
"""

from .base import METHODS, FineTuningMethod

__all__ = ["METHODS", "FineTuningMethod"]
