"""The trainer: one image with three stages (prepare, train, evaluate), configured by one TrainerConfig.

It never imports kopf or kubernetes. The only code that it shares with the operator is `finetune_api`.
"""
