"""Object storage: addresses, one client, whole-file transfers. Knows S3 and nothing of training; imports no torch.

Every failure leaves this room as one of our own errors (`finetune_trainer.errors`); no botocore exception does.
"""

from .client import Conditions, ObjectInfo, ObjectStore
from .retry import RetryPolicy
from .uri import S3Address, join, parse

__all__ = ["Conditions", "ObjectInfo", "ObjectStore", "RetryPolicy", "S3Address", "join", "parse"]
