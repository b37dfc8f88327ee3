"""`spec.data.augmentation`: changed copies of training records, one module for each method, registered in `METHODS`."""

from .base import METHODS, AugmentationMethod, Draw, Words
from .step import Augmentation, augmentation_of

__all__ = ["METHODS", "Augmentation", "AugmentationMethod", "Draw", "Words", "augmentation_of"]
