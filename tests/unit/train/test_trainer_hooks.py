"""What we override in transformers' Trainer is still there, with the parameters that we rely on."""

import inspect

import pytest
import torch
from transformers import Trainer, TrainerState

from finetune_trainer.train.trainer import is_finite

PARAMETERS = {
    "_init_training_state": ["max_steps", "num_update_steps_per_epoch", "num_train_epochs"],
    "_prepare_for_training": ["max_steps", "train_dataloader", "resume_from_checkpoint"],
    "_run_epoch": ["epoch", "resume_from_checkpoint", "steps_trained_in_current_epoch"],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_save_checkpoint": ["model", "trial"],
    "_load_rng_state": ["checkpoint"],
    "_get_train_sampler": ["train_dataset"],
    "_get_num_items_in_batch": ["batch_samples", "device"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "floating_point_ops": ["inputs"],
    "store_flos": [],
    "create_scheduler": ["num_training_steps", "optimizer"],
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_method_that_we_override_has_our_parameters(name: str) -> None:
    assert set(PARAMETERS[name]) <= set(inspect.signature(getattr(Trainer, name)).parameters)


@pytest.mark.parametrize("attribute", ["_tr_loss", "_total_loss_scalar", "_globalstep_last_logged"])
def test_the_loop_still_keeps_its_sums_where_we_restore_them(attribute: str) -> None:
    assert f"self.{attribute} =" in inspect.getsource(Trainer._inner_training_loop)


def test_generators_are_restored_only_after_the_batches_were_skipped() -> None:
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("skip_first_batches(") < source.index("if rng_to_sync:") < source.rindex("_load_rng_state(")


def test_the_loop_passes_the_epoch_by_name() -> None:
    assert "epoch=epoch," in inspect.getsource(Trainer._inner_training_loop)


def test_the_state_can_be_made_of_its_own_fields() -> None:
    state = TrainerState(global_step=3, log_history=[{"loss": 1.0, "step": 3}])
    assert TrainerState(**vars(state)) == state


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0, 3e38], True),
        ([1.0, float("nan"), 2.0], False),
        ([1.0, float("inf"), 2.0], False),
        ([1.0, float("-inf"), float("nan")], False),
        ([], True),
    ],
    ids=["finite", "NaN", "infinite", "both", "nothing of it on this rank"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_value_that_is_not_finite_is_found(values: list[float], finite: bool, dtype: torch.dtype) -> None:
    scaled = [min(value, 1e4) if value < float("inf") else value for value in values]  # what half precision holds
    assert is_finite(torch.tensor(scaled, dtype=dtype)) is finite
