"""How good the model is: metrics of the held-out test split before and after training, the report, the model card.

`significance`, `compare`, `report` and `model_card` are pure; `stage` alone reads and writes storage; models are loaded
in `judge`, `generate` and `reload`. What is measured is the task's choice (see `finetune_trainer.tasks`).
"""
