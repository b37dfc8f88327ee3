"""The evaluate stage: metrics of the test split before and after training, the report and the model card.

`significance`, `compare`, `report` and `model_card` are pure. Only `stage` writes to storage. Models are loaded by
`evaluator`, `generate` and `reload`. The task defines the metrics (see `finetune_trainer.tasks`).
"""
