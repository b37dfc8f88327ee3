"""The trainer: one image, three stages (prepare, train, evaluate), told what to do by one TrainerConfig.

Never imports kopf or kubernetes; meets the operator only in `finetune_api`.
"""
