"""Fixtures that other tests rely on."""

import json
from pathlib import Path

from factories import make_job
from finetune_api.validation import parse_job
from finetune_trainer.store import ObjectStore


def test_the_store_fixture_is_a_real_server_with_an_empty_bucket(store: ObjectStore, bucket: str) -> None:
    assert list(store.list(f"s3://{bucket}/")) == []
    store.put(f"s3://{bucket}/a/b", b"content")
    assert store.get(f"s3://{bucket}/a/b") == b"content"


def test_the_real_models_are_complete(minilm_folder: Path, smollm2_folder: Path) -> None:
    for folder, kind in ((minilm_folder, "bert"), (smollm2_folder, "llama")):
        assert json.loads((folder / "config.json").read_text())["model_type"] == kind
        assert (folder / "model.safetensors").stat().st_size > 50_000_000
        assert (folder / "tokenizer.json").exists()


def test_a_factory_job_is_valid() -> None:
    assert parse_job(make_job(workers={"nodes": 2})).spec.workers.nodes == 2
    assert "format" not in make_job(data={"format": None})["spec"]["data"]
