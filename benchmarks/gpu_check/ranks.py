"""Functions that run in ranks of the fork server: the train stage with measurements, and preparations that need torch.

`train` is the product's train stage. What a check needs in addition is in GPU_CHECK, a JSON object: `kill` (a step),
`steps` (end before the export after so many steps), `saves` (measure the saves), `is_deterministic`, `draws_weights`.
"""

import contextlib
import importlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOOK = "GPU_CHECK"
MEASURED = "measured.json"


def call(folder: Path) -> int:
    """Call the function that `call.json` names with its arguments, and write `result.json`."""
    job = json.loads((folder / "call.json").read_text())
    module, _, name = job["function"].partition(":")
    result = getattr(importlib.import_module(module), name)(**job["arguments"])
    (folder / "result.json").write_text(json.dumps(result))
    return 0


# The train stage


def train(config: Path) -> int:
    """Run the train stage like `rank_main.run_rank`, with the result of prepare in the configuration."""
    from finetune_trainer.rank_main import run_bound

    hook = json.loads(os.environ.get(HOOK, "{}"))

    def bind(given: Any, runtime: Any, report: Any) -> Callable[[], Any]:
        from finetune_api.trainer_config import PreparedConfig
        from finetune_trainer.stop import install_stop_flag
        from finetune_trainer.store.client import ObjectStore
        from finetune_trainer.train import stage

        install_hooks(stage, hook, given, runtime)
        prepared = PreparedConfig.of(given, given.prepared)
        store = ObjectStore.connect(given.storage)
        return lambda: stage.train(prepared, store, runtime, report, install_stop_flag())

    return run_bound(config, bind)


def install_hooks(stage: Any, hook: dict[str, Any], config: Any, runtime: Any) -> None:
    """Replace the classes of the stage by ones that measure, and end the training where the check ends it."""
    if hook.get("is_deterministic"):
        use_deterministic_kernels()
    if hook.get("draws_weights"):
        draw_weights(stage, config)

    manager = measured_manager(stage.CheckpointManager)
    loop = measured_loop(stage.TrainingLoop, manager, hook, runtime)
    vars(stage)["CheckpointManager"], vars(stage)["TrainingLoop"] = manager, loop


def measured_manager(base: Any) -> Any:
    """Return a CheckpointManager that times its saves."""

    class Manager(base):  # type: ignore[misc]
        saves: list[dict[str, Any]] = []

        def save(self, *args: Any, **kwargs: Any) -> Any:
            synchronize()
            started = time.perf_counter()
            result = super().save(*args, **kwargs)
            seconds, held = time.perf_counter() - started, self._saver._pinned._array
            pinned = 0 if held is None else int(held.nbytes)
            size = state_bytes(self._saver._client.snapshot)
            self.saves.append({"seconds": seconds, "pinnedBytes": pinned, "bytes": size})
            return result

    return Manager


def measured_loop(base: Any, manager: Any, hook: dict[str, Any], runtime: Any) -> Any:
    """Return a TrainingLoop that times its steps, and ends as the check requires."""

    class Loop(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.marks: list[tuple[float, int]] = []

        def _agree(self, *args: Any) -> None:
            super()._agree(*args)
            synchronize()
            self.marks.append((time.perf_counter(), int(self.run.tokens)))
            saver, step = self.parts.checkpoints._saver, self.run.step
            if "saves" in hook:
                saver.wait_until_idle()
            if step >= hook.get("kill", math.inf):
                kill_once_saved(saver, hook["kill"] - 1)
            if step >= hook.get("steps", math.inf):
                self.end_measured()

        def end_measured(self) -> None:
            from finetune_trainer.errors import StoppedError

            found = {"marks": self.marks, "saves": manager.saves, "trained": trained(self.module)}
            if "saves" in hook:
                found["copies"] = plain_copies(manager.saves[-1]["bytes"])
            write_measured(runtime, found)
            raise StoppedError("measured")

    return Loop


def kill_once_saved(saver: Any, step: int) -> None:
    """Kill this process with SIGKILL, if a checkpoint of this step or a later one is committed."""
    saver.wait_until_idle()
    if saver.last is not None and saver.last.step >= step:
        os.kill(os.getpid(), signal.SIGKILL)


def state_bytes(memory: Any) -> int:
    """Return the size of the shared memory of a snapshot."""
    return int(os.fstat(memory.descriptor).st_size)


def trained(module: Any) -> int:
    """Return the number of trained parameters, also of partitioned ones."""
    return sum(int(getattr(one, "ds_numel", one.numel())) for one in module.parameters() if one.requires_grad)


def write_measured(runtime: Any, found: dict[str, Any]) -> None:
    """Write what was measured, with the peak memory of this process, to the scratch folder."""
    from finetune_trainer.train.meter import peak_memory_bytes

    (runtime.scratch / MEASURED).write_text(json.dumps(found | {"peakBytes": peak_memory_bytes()}))


def synchronize() -> None:
    """Wait for the kernels that were started, if there is a GPU."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def use_deterministic_kernels() -> None:
    """Use kernels that give the same result in every run, where torch has them."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def plain_copies(size: int) -> dict[str, float]:
    """Seconds of copying `size` bytes of a device to host memory: new, reused and page-locked memory."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_initialized() else "cpu")
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    targets = {"reused": torch.zeros(size, dtype=torch.uint8)}
    if device.type == "cuda":
        targets["pinned"] = torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    seconds = {}
    for name, target in targets.items():
        target.copy_(source)
        synchronize()
        started = time.perf_counter()
        target.copy_(source)
        synchronize()
        seconds[name] = time.perf_counter() - started
    return seconds


# Models


def draw_weights(stage: Any, config: Any) -> None:
    """Let the stage draw the weights on its device instead of reading them."""
    folder = Path(config.spec.model.uri.removeprefix("file://"))

    class Drawn:
        path = folder

    def load(_folder: Path, *, task: Any, dtype: Any, seed: int, **_: Any) -> Any:
        from finetune_trainer.model.load import TORCH_DTYPES

        return drawn_model(folder, TORCH_DTYPES[dtype], seed, "cuda" if config.world.gpus else "cpu")

    vars(stage)["prepared_model"], vars(stage)["load_model"] = lambda *_: Drawn, load


def drawn_model(folder: Path, dtype: Any, seed: int, device: str) -> Any:
    """Return a decoder with random weights; under ZeRO-3, partitioned."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    set_seed(seed)
    place = contextlib.nullcontext() if is_deepspeed_zero3_enabled() else torch.device(device)
    with place:
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.new_parameters = frozenset()
    return model


def describe(gpu: bool) -> dict[str, Any]:
    """Return name, free memory and versions of the device."""
    import platform

    import torch

    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if not gpu or not torch.cuda.is_available():
        return {"kind": "cpu", "name": "CPU", "bytes": 0} | versions
    properties = torch.cuda.get_device_properties(0)
    return {
        "kind": "cuda",
        "name": properties.name,
        "bytes": int(torch.cuda.mem_get_info(0)[0]),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "hasBFloat16": bool(torch.cuda.is_bf16_supported(including_emulation=False)),
    } | versions


def matrix_tflops(size: int = 1024, repeats: int = 5) -> float:
    """Return the TFLOP/s of a product of 32-bit matrices on the CPU, instead of the peak rate of a GPU."""
    import torch

    left, right = torch.rand(size, size), torch.rand(size, size)
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return best


def reload(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Load the exported model from its files, and measure it on the rows that the trained model was measured on.

    The same as the evaluate stage does in `finetune_trainer.evaluate.reload`, which needs scipy.
    """
    import torch
    import torch.distributed as dist

    from finetune_api.trainer_config import PreparedConfig
    from finetune_trainer.data.shards import TokenDataset
    from finetune_trainer.model.reload import reload_model
    from finetune_trainer.reference import Sample, measure, read_reference
    from finetune_trainer.store.client import ObjectStore

    run, path = PreparedConfig.model_validate(config), Path(folder) / "model"
    store = ObjectStore.connect(run.storage)
    store.download_folder(run.model_uri, path)
    reference = read_reference(run, store)
    rows = TokenDataset.open(store, run.prepared.dataset_uri, reference.split, Path(folder) / "cache")
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    model = reload_model(path, run.model_uri, run.prepared)
    sample = Sample(reference.split, rows, reference.rows)
    found = measure(model, sample, task=run.prepared.task, device=torch.device("cpu"))
    dist.destroy_process_group()
    return {"trained": list(reference.losses), "reloaded": list(found.losses)}
