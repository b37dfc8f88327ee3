"""Continued pre-training of an encoder: the same masks for any number of workers, and the base of a classifier."""

import pytest

from finetune_api.v1alpha1 import ArtifactFormat
from training_harness import TrainingHarness


def test_a_run_continues_with_other_workers_and_batches_on_the_same_masks(harness: TrainingHarness) -> None:
    """The run moves from two workers with ZeRO-3 to one with ZeRO-1."""
    blocks = {"kind": "masked", "training": {"epochs": 6}}
    through = harness.config("masked-through", zero=3, **blocks)
    harness.finish(through)
    losses = harness.losses(through)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])

    harness.interrupt(harness.config("masked-moved", zero=3, **blocks), 7, how="stop")
    config = harness.config("masked-moved", attempt=2, world=1, micro=4, zero=1, **blocks)
    harness.finish(config)
    assert harness.losses(config)[:7] == losses[:7]
    assert harness.losses(config)[7:] == pytest.approx(losses[7:], rel=1e-3)


def test_its_export_is_the_base_model_of_a_classifier(harness: TrainingHarness) -> None:
    config = harness.config("masked-base", kind="masked", training={"maxSteps": 3, "epochs": None})
    harness.finish(config)
    harness.store.download_folder(config.layout.artifact(ArtifactFormat.MERGED), harness.models / "bert-continued")
    assert harness.prepare("bert-continued").warnings == ()
    harness.finish(harness.config("masked-classifier", kind="bert-continued"))
