"""Simple models that the trained model is compared with, one module each, registered in `BASELINES`."""

from .base import BASELINES, Answers, Baseline, NotFittedError, Predictor, TrainingRows

__all__ = ["BASELINES", "Answers", "Baseline", "NotFittedError", "Predictor", "TrainingRows"]
