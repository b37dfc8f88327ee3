"""The evaluate stage: metrics of the test split before and after training, report, model card and promotion.

`significance`, `compare`, `gate`, `report` and `model_card` are pure. Only `stage` and `promote` write to storage.
Models are loaded by `evaluator`, `generate` and `reload`. The task defines the metrics (see `finetune_trainer.tasks`).
"""
