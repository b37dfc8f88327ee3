"""The train stage: from prepared tokens and a base model to an exported model, resumable at every step.

`ds_config`, `plan` and `stopping` are pure; the rest drives transformers' Trainer and DeepSpeed.
"""
