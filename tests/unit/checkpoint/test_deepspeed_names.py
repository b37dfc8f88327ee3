"""The private names of DeepSpeed that checkpoint/engine/optimizer_state.py reads still exist in its sources."""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

STAGE_1_2 = ("runtime/zero/stage_1_and_2.py", "DeepSpeedZeroOptimizer")
STAGE_3 = ("runtime/zero/stage3.py", "DeepSpeedZeroOptimizer_Stage3")
ENGINE = ("runtime/engine.py", "DeepSpeedEngine")
FRAGMENT = ("utils/tensor_fragment.py", "tensor_fragment")
SCALER = ("runtime/fp16/loss_scaler.py", "DynamicLossScaler")
ADDRESS = ("utils/tensor_fragment.py", "fragment_address")

NAMES = {
    ENGINE: ["basic_optimizer", "optimizer", "param_names", "zero_optimization_stage"],
    STAGE_1_2: ["single_partition_of_fp32_groups", "bit16_groups", "update_lp_params", "loss_scaler", "overflow"],
    STAGE_3: [
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "sub_group_to_group_id",
        "persistent_parameters",
        "loss_scaler",
        "overflow",
        "_partition_all_parameters",
        "_reassign_or_swap_out_partitioned_parameters",
        "invalidate_secondary_tensor",
    ],
    FRAGMENT: ["hp_fragment_address", "lp_fragment_address"],
    ADDRESS: ["start", "numel"],
    SCALER: ["cur_iter", "last_overflow_iter", "cur_hysteresis", "dynamic"],
}
COUNTERS = ["global_steps", "global_samples", "skipped_steps", "micro_steps"]


@cache
def tree(file: str) -> ast.Module:
    spec = find_spec("deepspeed")
    assert spec is not None
    assert spec.submodule_search_locations
    return ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text())


def members(file: str, name: str) -> set[str]:
    """Methods, fields and attributes of `self` of the class."""
    found = next(node for node in ast.walk(tree(file)) if isinstance(node, ast.ClassDef) and node.name == name)
    names = {node.name for node in ast.walk(found) if isinstance(node, ast.FunctionDef)}
    names |= {
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    for node in ast.walk(found):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "self" else set()
    return names


@pytest.mark.parametrize(("place", "names"), [*NAMES.items(), (ENGINE, COUNTERS)])
def test_the_names_still_exist(place: tuple[str, str], names: list[str]) -> None:
    assert set(names) - members(*place) == set()


def test_the_error_of_a_loss_scale_that_cannot_shrink_still_says_so() -> None:
    """The train stage recognizes it by this text, because it is a bare Exception."""
    texts = {node.value for node in ast.walk(tree(SCALER[0])) if isinstance(node, ast.Constant)}
    assert any("loss scale already at minimum" in text for text in texts if isinstance(text, str))


@pytest.mark.parametrize("name", ["ds_numel", "ds_shape", "ds_process_group", "partition_numel", "all_gather"])
def test_the_names_on_a_partitioned_parameter_still_exist(name: str) -> None:
    stored = {
        node.attr
        for node in ast.walk(tree("runtime/zero/partition_parameters.py"))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert name in stored


def test_the_mapping_of_a_parameter_is_still_named_hp_mapping() -> None:
    stored = {
        node.attr
        for node in ast.walk(tree("utils/mixed_precision_linkage.py"))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert "_hp_mapping" in stored
