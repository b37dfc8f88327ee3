"""The fp32 parameters and Adam moments inside a DeepSpeed engine, by parameter name, for ZeRO stages 0 to 3.

The only module that uses private attributes of DeepSpeed's optimizers; tests/unit/checkpoint asserts that they exist.

| stage | flat fp32 parameters | which parameters, and where |
|---|---|---|
| 0 | the parameters themselves, on every rank | the parameter groups |
| 1, 2 | `single_partition_of_fp32_groups[g]` | `bit16_groups[g]`, each `_hp_mapping` |
| 3 | `fp32_partitioned_groups_flat[s]` | `fp16_groups[s]` in order, each padded to `partition_numel()` |

Adam's moments are in `engine.basic_optimizer.state` under the flat tensor, padding included. Padding is not saved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ...errors import BadConfigError
from ..format.layout import OPTIMIZER_STATE_ARRAYS, Fragment, Layout

COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")
MOMENTS = ("exp_avg", "exp_avg_sq")
WITH_TWO_MOMENTS = (torch.optim.Adam, torch.optim.RAdam)
"""Optimizers whose state is MOMENTS and the number of steps, all of them per element. AdamW is an Adam."""
LEARNING_RATE = ("lr", "initial_lr")
"""Options of a parameter group that the schedule sets."""
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""State of DeepSpeed's DynamicLossScaler, which determines the next changes of the scale."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Slot:
    """A fragment and its location: elements `at` to `at + fragment.numel` of the tensor that the optimizer updates."""

    fragment: Fragment
    tensor: torch.Tensor
    """The tensor that the optimizer updates: contiguous fp32."""
    at: int

    def parameter(self) -> torch.Tensor:
        """View of the fragment's parameter elements, 1-D."""
        return self._view(self.tensor.detach())

    def moment(self, state: dict[str, Any], name: str) -> torch.Tensor:
        """View of the fragment's elements of a moment, 1-D."""
        return self._view(state[name])

    def _view(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(-1).narrow(0, self.at, self.fragment.numel)


def layout_of(slots: Sequence[Slot]) -> Layout:
    """The layout with the slots in the order that `read` and `write` use."""
    return Layout(fragments=tuple(slot.fragment for slot in slots))


def wanted(engine: Any) -> list[Slot]:
    """The slots that this rank needs: its partition, or all parameters with stage 0. Raises BadConfigError."""
    stage = engine.zero_optimization_stage()
    _check_optimizer(engine, stage)
    slots = list({0: _replicated, 1: _partitioned, 2: _partitioned, 3: _sharded}[stage](engine))
    for slot in slots:
        if slot.tensor.dtype != torch.float32 or not slot.tensor.is_contiguous():
            raise BadConfigError(
                f"{slot.fragment.name} is optimized in {slot.tensor.dtype}; checkpoints need contiguous fp32 "
                "optimizer state",
                advice="remove what changes the optimizer's data type from spec.deepspeed.config",
            )
    return slots


def owned(engine: Any, *, rank: int, world_size: int) -> list[Slot]:
    """The slots that this rank saves. With stage 0 every rank saves its share of each parameter."""
    slots = wanted(engine)
    if engine.zero_optimization_stage() > 0:
        return slots
    shares = (_share(slot, rank, world_size) for slot in slots)
    return [share for share in shares if share.fragment.numel]


def _share(slot: Slot, rank: int, world_size: int) -> Slot:
    total = slot.fragment.numel
    start, stop = total * rank // world_size, total * (rank + 1) // world_size
    fragment = slot.fragment.model_copy(update={"start": start, "numel": stop - start})
    return Slot(fragment, slot.tensor, start)


def _check_optimizer(engine: Any, stage: int) -> None:
    needed = {0: "param_groups", 1: "bit16_groups", 2: "bit16_groups", 3: "fp32_partitioned_groups_flat"}[stage]
    wrapped = stage == 0 and engine.optimizer is not engine.basic_optimizer
    if wrapped or not hasattr(engine.optimizer, needed) or (stage in (1, 2) and not _has_flat_groups(engine)):
        raise BadConfigError(
            f"the state of DeepSpeed's {type(engine.optimizer).__name__} under ZeRO stage {stage} cannot be saved",
            advice="for BFloat16 and Float16, use spec.deepspeed.zeroStage 2 or 3, and no data_types in "
            "spec.deepspeed.config",
        )
    if not isinstance(engine.basic_optimizer, WITH_TWO_MOMENTS):
        raise BadConfigError(
            f"checkpoints support optimizers with Adam's state only, not {type(engine.basic_optimizer).__name__}"
        )


def _has_flat_groups(engine: Any) -> bool:
    return hasattr(engine.optimizer, "single_partition_of_fp32_groups")


def _replicated(engine: Any) -> Iterator[Slot]:
    for group, options in enumerate(engine.basic_optimizer.param_groups):
        for parameter in options["params"]:
            name, shape = engine.param_names[parameter], tuple(parameter.shape)
            fragment = Fragment(name=name, group=group, start=0, numel=parameter.numel(), shape=shape)
            yield Slot(fragment, parameter, 0)


def _partitioned(engine: Any) -> Iterator[Slot]:
    optimizer = engine.optimizer
    flats = optimizer.single_partition_of_fp32_groups
    for group, (parameters, flat) in enumerate(zip(optimizer.bit16_groups, flats, strict=True)):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is None:  # outside of this rank's partition
                continue
            here = mapping.hp_fragment_address
            fragment = Fragment(
                name=engine.param_names[parameter],
                group=group,
                start=mapping.lp_fragment_address.start,
                numel=here.numel,
                shape=tuple(parameter.shape),
            )
            yield Slot(fragment, flat, here.start)


def _sharded(engine: Any) -> Iterator[Slot]:
    optimizer = engine.optimizer
    flats = optimizer.fp32_partitioned_groups_flat
    for sub_group, (parameters, flat) in enumerate(zip(optimizer.fp16_groups, flats, strict=True)):
        at = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            start = size * dist.get_rank(group=parameter.ds_process_group)
            numel = min(size, parameter.ds_numel - start)
            if numel > 0:
                fragment = Fragment(
                    name=engine.param_names[parameter],
                    group=optimizer.sub_group_to_group_id[sub_group],
                    start=start,
                    numel=numel,
                    shape=tuple(parameter.ds_shape),
                )
                yield Slot(fragment, flat, at)
            at += size


def trained_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """Name and full shape of every parameter of the optimizer, on any rank.

    Gradual unfreezing disables the gradients of some of them in early phases, so `requires_grad` is not sufficient.
    """
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        groups = [options["params"] for options in engine.basic_optimizer.param_groups]
    else:
        groups = optimizer.bit16_groups if stage < 3 else optimizer.fp16_groups
    return {
        engine.param_names[parameter]: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for parameters in groups
        for parameter in parameters
    }


def read(engine: Any, slots: Sequence[Slot], arrays: FloatArray) -> tuple[float, ...]:
    """Copy parameters and moments of the slots into `arrays`, which has OPTIMIZER_STATE_ARRAYS times their elements.

    Returns Adam's step of each slot.
    """
    state = engine.basic_optimizer.state
    target = torch.from_numpy(arrays).view(OPTIMIZER_STATE_ARRAYS, -1)
    offset = 0
    for slot in slots:
        end = offset + slot.fragment.numel
        target[0, offset:end].copy_(slot.parameter())
        adam = state.get(slot.tensor) or {}
        for array, name in enumerate(MOMENTS, start=1):
            if name in adam:
                target[array, offset:end].copy_(slot.moment(adam, name))
            else:  # not stepped yet
                target[array, offset:end].zero_()
        offset = end
    return tuple(_step_of(state.get(slot.tensor) or {}) for slot in slots)


def _step_of(adam: dict[str, Any]) -> float:
    return float(adam.get("step", 0.0))


def write(engine: Any, slots: Sequence[Slot], arrays: FloatArray, steps: Sequence[float] | None) -> None:
    """Copy `arrays` into the engine: parameters and, with `steps`, moments and step counts. Collective.

    Without `steps`, `arrays` holds the parameters only, and the optimizer's moments are unchanged.
    """
    source = torch.from_numpy(arrays).view(1 if steps is None else OPTIMIZER_STATE_ARRAYS, -1)
    offset = 0
    for number, slot in enumerate(slots):
        end = offset + slot.fragment.numel
        slot.parameter().copy_(source[0, offset:end])
        if steps is not None:
            adam = _adam_state(engine.basic_optimizer, slot.tensor)
            adam["step"].fill_(steps[number])
            for array, name in enumerate(MOMENTS, start=1):
                slot.moment(adam, name).copy_(source[array, offset:end])
        offset = end
    _push_to_module(engine)


def _adam_state(optimizer: Any, tensor: torch.Tensor) -> dict[str, Any]:
    """Adam's state of a tensor; created as torch does at the first step if it is missing."""
    state: dict[str, Any] = optimizer.state[tensor]
    if "step" not in state:
        options = next(iter(optimizer.param_groups))
        on_device = options.get("fused") or options.get("capturable")
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu")
    for name in MOMENTS:
        if name not in state:
            state[name] = torch.zeros_like(tensor, memory_format=torch.preserve_format, requires_grad=False)
    return state


def _push_to_module(engine: Any) -> None:
    """Copy the fp32 values to the weights of the module, as the end of an optimizer step does."""
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        optimizer._partition_all_parameters()
        for sub_group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
        optimizer.invalidate_secondary_tensor()


def counters(engine: Any) -> dict[str, int]:
    """Counters of the engine."""
    return {name: int(getattr(engine, name)) for name in COUNTERS}


def set_counters(engine: Any, values: dict[str, int]) -> None:
    """Set the counters."""
    for name in COUNTERS:
        setattr(engine, name, values[name])


def loss_scale(engine: Any) -> dict[str, int | float]:
    """State of the dynamic loss scale; empty if there is none."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not scaler.dynamic:
        return {}
    return {name: getattr(scaler, name) for name in LOSS_SCALE}


def set_loss_scale(engine: Any, values: dict[str, int | float]) -> None:
    """Set the state of the loss scale. Checkpoints without Float16 have none; the scale then keeps its initial
    value."""
    if loss_scale(engine):
        for name, value in values.items():
            setattr(engine.optimizer.loss_scaler, name, value)


def groups(engine: Any) -> tuple[dict[str, Any], ...]:
    """Hyper-parameters of the parameter groups, as JSON values."""
    return tuple(
        {key: _plain(value) for key, value in options.items() if key != "params" and not key.startswith("_")}
        for options in engine.basic_optimizer.param_groups
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else list(value) if isinstance(value, tuple) else value


def check_groups(engine: Any, stored: Sequence[dict[str, Any]]) -> None:
    """Raise BadConfigError if the optimizer has different groups, or a different weight decay in one of them."""
    now = [options["weight_decay"] for options in groups(engine)]
    then = [options["weight_decay"] for options in stored]
    if now != then:
        raise BadConfigError(f"the optimizer's parameter groups have weight decay {now}, but {then} in the checkpoint")


def set_groups(engine: Any, stored: Sequence[dict[str, Any]]) -> None:
    """Set the hyper-parameters, except for the learning rate.

    The schedule of the attempt computes the learning rate, which may differ from that of the previous attempt.
    """
    for options, values in zip(engine.basic_optimizer.param_groups, stored, strict=True):
        for key, value in values.items():
            if key in LEARNING_RATE:
                continue
            if isinstance(options.get(key), torch.Tensor):
                options[key].fill_(value)
            else:
                options[key] = tuple(value) if isinstance(value, list) else value
