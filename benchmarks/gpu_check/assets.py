"""Makes the assets of the bundle with the prepare stage: a tokenizer, and rows for classification and chat.

    python -m gpu_check.assets FOLDER

Needs pyarrow, and tests/support on PYTHONPATH.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from finetune_api.constants import Stage
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import Spec
from finetune_trainer.data.prepare import prepare
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.runtime import RuntimeEnv
from finetune_trainer.store import ObjectStore

from .cases import Case, llama
from .prepared import BUCKET, make_model
from .s3_server import s3_server

_ROWS = 240
_WORDS = {
    "animal": ["fox", "dog", "bird", "wolf", "horse"],
    "food": ["bread", "milk", "cheese", "apple", "soup"],
    "place": ["hill", "lake", "town", "road", "field"],
}


def rows(kind: str) -> list[dict[str, Any]]:
    """Return labeled texts or conversations, which a model can learn."""
    draw, made = random.Random(7), []
    for index in range(_ROWS):
        label = sorted(_WORDS)[index % len(_WORDS)]
        words = " ".join(draw.choices(_WORDS[label], k=draw.randint(3, 9)))
        question, answer = f"What are {words}?", f"Each of them is a kind of {label}."
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        made.append({"messages": turns} if kind == "chat" else {"text": words, "label": label})
    return made


def make_assets(folder: Path) -> None:
    """Write tokenizer, prepared rows, and the results of the prepare stage."""
    from tiny_models import CHATML, tiny_tokenizer

    tokenizer = tiny_tokenizer(CHATML, eos="<|im_end|>")
    tokenizer.save_pretrained(folder / "tokenizer")
    os.environ |= {"AWS_ACCESS_KEY_ID": "gpu-check", "AWS_SECRET_ACCESS_KEY": "gpu-check"}
    with tempfile.TemporaryDirectory() as work, s3_server(Path(work) / "store") as endpoint:
        for kind, form in (("classification", "Classification"), ("chat", "Chat")):
            model = Path(work) / kind
            tokenizer.save_pretrained(model)
            make_model(model, Case("", llama(64, 2, heads=4) | {"vocab_size": len(tokenizer)}, kind))
            _prepare(kind, form, model, folder, Path(work), StorageSettings(endpoint=endpoint, path_style=True))


def _prepare(kind: str, form: str, model: Path, folder: Path, work: Path, settings: StorageSettings) -> None:
    store = ObjectStore.connect(settings)
    lines = "".join(json.dumps(row) + "\n" for row in rows(kind))
    store.put(f"s3://{BUCKET}/{kind}.jsonl", lines.encode())
    spec = {
        "model": {"uri": f"file://{model}"},
        "data": {"train": [{"uri": f"s3://{BUCKET}/{kind}.jsonl"}], "format": form, "maxLength": 128},
        "method": {"full": {}},
        "training": {"learningRate": 1e-3, "globalBatchSize": 8},
        "output": {"uri": f"s3://{BUCKET}/{kind}"},
        "workers": {"nodes": 1},
    }
    config = TrainerConfig(
        job=JobRef(namespace="gpu-check", name=kind, uid="1"),
        run=1,
        stage=Stage.PREPARE,
        attempt=1,
        spec=Spec.model_validate(spec),
        storage=settings,
        world=World(),
        batch=BatchPlan(global_size=8, micro_size=8, accumulation=1),
    )
    runtime = RuntimeEnv(0, 1, 0, 1, work / f"scratch-{kind}", work / "cache")
    runtime.scratch.mkdir()
    prepared = prepare(config, store, runtime, ProgressReporter(None, stage=Stage.PREPARE))
    (folder / f"{kind}.json").write_text(prepared.model_dump_json(indent=1, exclude={"notes", "warnings"}))
    store.download_folder(prepared.dataset_uri, folder / "data" / kind)


if __name__ == "__main__":
    make_assets(Path(sys.argv[1]))
