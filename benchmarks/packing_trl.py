"""The side of packing.py that trains with TRL: SFTTrainer with `packing=True` on the rows of a prepared run.

TRL is installed into a folder of its own, because its packages are no dependency of the project. A row of TRL is one
pack, as on our side; its `bfd` strategy concatenates the examples of a pack, and position ids separate them.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LOCK_FILE = ROOT / "requirements/trl.txt"


def packages() -> Path:
    """Return a folder with TRL, installed once. Raises SystemExit if it cannot be installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator/benchmarks"
    target = cache / f"trl-{hashlib.sha256(_LOCK_FILE.read_bytes()).hexdigest()[:16]}"
    if not target.is_dir():
        print(f"installing TRL into {target}", flush=True)
        scratch = target.with_suffix(".part")
        uv = str(Path(sys.executable).parent / "uv")
        packages = ("--no-deps", "--require-hashes", "--requirement", str(_LOCK_FILE))
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(scratch), *packages]
        if subprocess.run(command, check=False).returncode != 0:
            raise SystemExit("TRL could not be installed; run `make setup`, or leave --trl out")
        scratch.rename(target)
    return target


def train_with_trl(config: dict[str, Any], packs_per_step: int, folder: Path) -> dict[str, Any]:
    """Train in a process of its own. Returns the ends of the steps, as training_speed.py, and the held-out loss."""
    folder.mkdir()
    job = folder / "job.json"
    job.write_text(json.dumps({"config": config, "packs_per_step": packs_per_step}))
    paths = [str(packages()), str(ROOT / "operator"), str(ROOT / "trainer")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "log"
    with log.open("wb") as output:
        command = [sys.executable, __file__, str(job)]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"TRL failed:\n{log.read_text()[-3000:]}")
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def _main(job_path: Path) -> None:
    import torch
    from datasets import Dataset  # type: ignore[import-not-found, unused-ignore]
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found, unused-ignore]

    from finetune_api.trainer_config import TrainerConfig
    from finetune_trainer.data.shards import TokenDataset
    from finetune_trainer.model.tokenizer import load_tokenizer
    from finetune_trainer.store.client import ObjectStore

    torch.set_num_threads(1)
    job = json.loads(job_path.read_text())
    config = TrainerConfig.model_validate(job["config"])
    training, prepared, scratch = config.spec.training, config.prepared, job_path.parent
    assert prepared is not None
    store, base = ObjectStore.connect(config.storage), config.spec.model.uri.removeprefix("file://")

    def rows(split: str) -> list[list[int]]:
        found = TokenDataset.open(store, prepared.dataset_uri, split, scratch / "cache")
        return [[int(token) for token in found[index]["input_ids"]] for index in range(len(found))]

    marks: list[tuple[float, float, int]] = []
    seen = [0]

    def count(_module: torch.nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        seen[0] += int(kwargs["input_ids"].numel() if mask is None else mask.sum())

    class Clock(TrainerCallback):
        """Records the time at the end of a step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append((time.perf_counter(), time.process_time(), seen[0]))

    arguments = SFTConfig(
        output_dir=str(scratch / "trl"),
        use_cpu=True,
        bf16=False,
        seed=training.seed,
        packing=True,
        max_length=config.spec.data.max_length,
        num_train_epochs=training.epochs or 2,
        # One pack at a time: TRL joins the packs of a batch to one row, whose attention grows with its square.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=job["packs_per_step"],
        gradient_checkpointing=False,
        learning_rate=training.peak_learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=training.max_grad_norm,
        save_strategy="no",
        report_to="none",
        logging_steps=1_000_000,
        disable_tqdm=True,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows("train")}),
        processing_class=load_tokenizer(Path(base)),
        callbacks=[Clock()],
    )
    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    hook.remove()
    model.eval()
    nats, targets = 0.0, 0
    with torch.no_grad():
        for row in rows("validation"):
            ids = torch.tensor([row])
            nats += float(model(input_ids=ids, labels=ids).loss) * (len(row) - 1)
            targets += len(row) - 1
    found = {"marks": marks, "loss": nats / targets, "packs": len(trainer.train_dataset)}
    (scratch / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
