"""Object storage: addresses, one client and transfers of whole files. Depends on S3 only, and does not import torch.

Every failure is raised as an error of `finetune_trainer.errors`. No botocore exception leaves this package.
"""

from .client import Conditions, ObjectInfo, ObjectStore, StoredVersion
from .retry import RetryPolicy
from .uri import S3Address, join, parse

__all__ = ["Conditions", "ObjectInfo", "ObjectStore", "RetryPolicy", "S3Address", "StoredVersion", "join", "parse"]
