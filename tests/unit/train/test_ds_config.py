"""DeepSpeed's configuration, whole, for a table of jobs."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.v1alpha1 import Dtype, Offload
from finetune_trainer.model.zero_buffers import MAX_BUCKET_ELEMENTS
from finetune_trainer.train.ds_config import deepspeed_config
from train_configs import train_config

GOLDEN = Path(__file__).parent / "golden_ds_config.json"

CASES: dict[str, dict[str, Any]] = {
    "zero0-cpu": {"prepared": {"zero_stage": 0}},
    "zero1-cpu": {"prepared": {"zero_stage": 1}},
    "zero2-cpu": {"prepared": {"zero_stage": 2}},
    "zero3-cpu": {"prepared": {"zero_stage": 3}},
    "zero2-gpu-bf16": {"gpus": True, "prepared": {"zero_stage": 2, "dtype": Dtype.BFLOAT16}},
    "zero3-gpu-bf16-accumulating": {
        "gpus": True,
        "micro": 2,
        "prepared": {"zero_stage": 3, "dtype": Dtype.BFLOAT16, "parameters": 7_000_000_000},
    },
    "zero2-gpu-fp16": {"gpus": True, "prepared": {"zero_stage": 2, "dtype": Dtype.FLOAT16}},
    "zero2-gpu-optimizer-away": {
        "gpus": True,
        "deepspeed": {"offload": "Optimizer"},
        "prepared": {"zero_stage": 2, "dtype": Dtype.BFLOAT16},
    },
    "zero3-cpu-all-away-as-the-attempt-asks": {
        "deepspeed": {"zeroStage": 3, "offload": "OptimizerAndParameters"},
        "prepared": {"zero_stage": 1},
    },
    "no-clipping": {"training": {"maxGradNorm": 0.0}},
    "user-settings": {
        "deepspeed": {"config": {"zero_optimization": {"reduce_bucket_size": 7}, "wall_clock_breakdown": True}}
    },
}


def test_the_configurations_are_the_golden_ones() -> None:
    made = {name: deepspeed_config(train_config(**case)) for name, case in CASES.items()}
    assert made == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
@pytest.mark.parametrize(("stage", "used"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_16_bit_weights_get_a_stage_that_sums_their_gradients_in_32_bit(dtype: Dtype, stage: int, used: int) -> None:
    config = deepspeed_config(train_config(prepared={"zero_stage": stage, "dtype": dtype}))
    assert config["zero_optimization"]["stage"] == used
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["communication_data_type"] == "fp32"


@pytest.mark.parametrize("parameters", [1_000, 22_700_000, 70_000_000_000])
def test_buckets_stay_within_their_bounds(parameters: int) -> None:
    zero = deepspeed_config(train_config(prepared={"parameters": parameters}))["zero_optimization"]
    assert 1_000_000 <= zero["reduce_bucket_size"] <= MAX_BUCKET_ELEMENTS


@pytest.mark.parametrize(
    ("deepspeed", "parts"),
    [
        ({}, {"offload_optimizer", "offload_param"}),
        ({"offload": "None"}, set()),
        ({"offload": "Optimizer"}, {"offload_optimizer"}),
        ({"zeroStage": 2}, set()),  # it cannot offload parameters
    ],
)
def test_what_the_prepare_stage_offloads_is_used_if_the_job_leaves_it_out(
    deepspeed: dict[str, Any], parts: set[str]
) -> None:
    prepared = {"zero_stage": 3, "dtype": Dtype.BFLOAT16, "offload": Offload.OPTIMIZER_AND_PARAMETERS}
    zero = deepspeed_config(train_config(gpus=True, prepared=prepared, deepspeed=deepspeed))["zero_optimization"]
    assert {name for name in zero if name.startswith("offload")} == parts


def test_the_users_objects_are_merged_key_by_key() -> None:
    merged = deepspeed_config(train_config(**CASES["user-settings"]))
    assert merged["zero_optimization"]["stage"] == 2
    assert merged["zero_optimization"]["reduce_bucket_size"] == 7
