"""Addresses in object storage are stable, because other tools and stored runs use them."""

import re
from pathlib import Path

import pytest

from finetune_api.run_layout import PromotionLayout, RunLayout, base_model_folder, dataset_folder
from finetune_api.v1alpha1 import ArtifactFormat, GgufType

README = Path(__file__).parents[3] / "README.md"
RUN = RunLayout.of("s3://bucket/out/", 1, "1f3a9c42-0000-4000-8000-000000000000")
ADDRESSES = {
    "runs/r0001-1f3a9c42": RUN.uri,
    "runs/r0001-1f3a9c42/run.json": RUN.record,
    "runs/r0001-1f3a9c42/checkpoints": RUN.checkpoints,
    "runs/r0001-1f3a9c42/checkpoints/manifests": RUN.manifests,
    "runs/r0001-1f3a9c42/checkpoints/blobs": RUN.blobs,
    "runs/r0001-1f3a9c42/attempts": RUN.claims,
    "runs/r0001-1f3a9c42/model": RUN.artifact(ArtifactFormat.MERGED),
    "runs/r0001-1f3a9c42/adapter": RUN.artifact(ArtifactFormat.ADAPTER),
    "runs/r0001-1f3a9c42/int8": RUN.artifact(ArtifactFormat.INT8),
    "runs/r0001-1f3a9c42/gguf/model-Q8_0.gguf": RUN.gguf(GgufType.Q8_0),
    "runs/r0001-1f3a9c42/compressed-tensors": RUN.artifact(ArtifactFormat.COMPRESSED_TENSORS),
    "runs/r0001-1f3a9c42/tensorboard": RUN.tensorboard,
    "runs/r0001-1f3a9c42/wandb": RUN.wandb,
    "runs/r0001-1f3a9c42/micro-batch-<settings>.json": RUN.micro_batch("<settings>"),
    "runs/r0001-1f3a9c42/learning-rate.json": RUN.learning_rate,
    "runs/r0001-1f3a9c42/training.json": RUN.training_log,
    "runs/r0001-1f3a9c42/reference.json": RUN.reference,
    "runs/r0001-1f3a9c42/evaluation.json": RUN.evaluation,
    "runs/r0001-1f3a9c42/report.html": RUN.report,
    "datasets/0f3c": dataset_folder("s3://bucket/out", "0f3c"),
    "models/0f3c": base_model_folder("s3://bucket/out/", "0f3c"),
}


@pytest.mark.parametrize(("path", "address"), ADDRESSES.items())
def test_an_address_is_a_fixed_path_below_the_output(path: str, address: str) -> None:
    assert address == f"s3://bucket/out/{path}"


def test_every_path_that_the_readme_documents_is_one_of_them() -> None:
    section = README.read_text().split("## Output of a run")[1].split("\n## ")[0]
    documented = [path.rstrip("/") for path in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)]
    assert len(documented) == 14
    known = {re.sub("/0f3c$", "/<digest>", path) for path in ADDRESSES}
    assert set(documented) <= known


@pytest.mark.parametrize("inside", ["", "/", "/checkpoints", "/checkpoints/", "/checkpoints/manifests/4.json"])
def test_a_run_is_found_from_an_address_in_its_checkpoints(inside: str) -> None:
    assert RunLayout.containing(f"{RUN.uri}{inside}") == RUN


@pytest.mark.parametrize("outside", ["/model", "/checkpoints/other/x", "/run.json"])
def test_other_addresses_are_unchanged(outside: str) -> None:
    assert RunLayout.containing(f"{RUN.uri}{outside}").uri == f"{RUN.uri}{outside}"


@pytest.mark.parametrize("output", ["s3://bucket/out", "s3://bucket/runs/r0001-1/runs", "s3://bucket"])
def test_the_promoted_model_of_a_run_is_that_of_its_output(output: str) -> None:
    layout = PromotionLayout.of(f"{output}/")
    assert layout.record == f"{output}/promoted.json"
    assert layout.marker == f"{output}/promoted/promotion.json"
    assert PromotionLayout.of_run(RunLayout.of(output, 12345, "1f3a9c42-77").uri) == layout


@pytest.mark.parametrize("uri", ["s3://bucket/out", "s3://bucket/out/runs/r0001-1/model", "s3://bucket/runs"])
def test_an_address_that_is_not_a_run_has_no_promoted_model(uri: str) -> None:
    assert PromotionLayout.of_run(uri) is None
