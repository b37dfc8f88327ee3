"""What bad input gets: every violation, with its path, the value and what to write instead."""

from typing import Any

import pytest

from finetune_api.validation import InvalidJobError, parse_job


def job_with(path: str, value: Any) -> dict[str, Any]:
    """A minimal job with one field set, `spec.training.learningRate` style; None removes the field."""
    manifest: dict[str, Any] = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "example"},
        "spec": {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/train.jsonl"}]},
            "training": {"learningRate": 2e-5},
            "output": {"uri": "s3://bucket/out"},
        },
    }
    *parents, last = path.split(".")
    target = manifest
    for part in parents:
        target = target.setdefault(part, {})
    if value is None:
        del target[last]
    else:
        target[last] = value
    return manifest


def complaints(manifest: dict[str, Any], *, local: bool = False) -> list[str]:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(manifest, local=local)
    return [str(violation) for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.training.learningrate", 1e-4, "spec.training.learningrate: unknown field; did you mean learningRate?"),
        ("spec.training.epoch", 3, "spec.training.epoch: unknown field; did you mean epochs?"),
        ("spec.trainig", {}, "spec.trainig: unknown field; did you mean training?"),
        ("spec.method.lora.rnak", 8, "spec.method.lora.rnak: unknown field; did you mean rank?"),
        ("spec.model.zzz", 1, "spec.model.zzz: unknown field; known here: uri, task, dtype"),
        ("spec.training.learningRate", None, "spec.training.learningRate: is required"),
        ("spec.training.learningRate", "2e-4", 'spec.training.learningRate: "2e-4" is text, needed is valid number'),
        ("spec.training.epochs", 0, "spec.training.epochs: 0 is not valid, needed is greater than or equal to 1"),
        ("spec.training.epochs", 2.5, "spec.training.epochs: 2.5 is not valid, needed is valid integer"),
        ("spec.training.schedule", "cosine", "did you mean Cosine?"),
        ("spec.data.format", "Chatt", "did you mean Chat?"),
        (
            "spec.model.uri",
            "bucket/model",
            'spec.model.uri: "bucket/model" is not valid, needed is s3://bucket/prefix, hf://',
        ),
        (
            "spec.output.uri",
            "s3://My_Bucket/x",
            "needed is an address such as s3://bucket/prefix (a bucket's name has 3 to",
        ),
        ("spec.data.train", [], "spec.data.train: [] is not valid"),
        (
            "spec.checkpoint.keepLast",
            0,
            "spec.checkpoint.keepLast: 0 is not valid, needed is greater than or equal to 1",
        ),
        ("spec.checkpoint.keepBest", -1, "spec.checkpoint.keepBest: -1 is not valid"),
        ("spec.checkpoint.keepEvery", 0, "spec.checkpoint.keepEvery: 0 is not valid"),
        ("metadata.name", "Upper", 'metadata.name: "Upper" is not valid, needed is a name of a-z, 0-9'),
        ("metadata.name", "x" * 41, "metadata.name"),
        ("kind", "Job", "kind"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_the_remedy(path: str, value: Any, expected: str) -> None:
    assert any(expected in complaint for complaint in complaints(job_with(path, value)))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("spec.method", {}, "spec.method: exactly one of full, lora is needed, found none"),
        (
            "spec.method",
            {"full": {}, "lora": {}},
            "spec.method: exactly one of full, lora is needed, found full and lora",
        ),
        ("spec.training", {"learningRate": 1, "epochs": 1, "maxSteps": 5}, "spec.training: epochs and maxSteps"),
        (
            "spec.training",
            {"learningRate": 1, "maxSteps": 5, "warmup": {"steps": 5}},
            "spec.training.warmup.steps: 5 must be less than spec.training.maxSteps, 5",
        ),
        ("spec.training.warmup", {"ratio": 0.1, "steps": 5}, "spec.training.warmup: ratio and steps"),
        ("spec.checkpoint", {"maxLostWork": "5m", "everySteps": 3}, "spec.checkpoint: maxLostWork and everySteps"),
        (
            "spec",
            job_with("spec.training.earlyStopping", {})["spec"] | {"checkpoint": {"keepBest": 0}},
            "spec.checkpoint.keepBest: 0 would remove the best state, which early stopping exports; write 1, or remove",
        ),
        ("spec.checkpoint", {"keepBest": 0}, None),
        ("spec.workers", {"nodes": 2, "minNodes": 4}, "spec.workers.minNodes: 4 is more than spec.workers.nodes, 2"),
        (
            "spec.workers",
            {"nodes": 4, "minNodes": 3},
            "spec.workers.minNodes: 3 workers cannot share a global batch of 16 evenly; write 1 or 2 or 4",
        ),
        (
            "spec.workers",
            {"nodes": 4, "startTimeout": "1m"},
            "spec.workers.startTimeout: without minNodes a job waits for all of its workers; set minNodes too",
        ),
        ("spec.workers", {"nodes": 4, "minNodes": 2, "startTimeout": "1m"}, None),
        ("spec.data.test", {}, "spec.data.test: exactly one of sources, fraction is needed"),
        (
            "spec.data.test",
            {"sources": [{"uri": "s3://bucket/t.jsonl"}], "stratify": True},
            "spec.data.test.stratify: only a split by fraction can be stratified",
        ),
        ("spec.data.validation", {"fraction": 0.9}, "spec.data: validation.fraction and test.fraction add up to 1"),
        ("spec.workers.nodes", 3, "globalBatchSize: 16 cannot be divided among 3 training processes; write 15 or 18"),
        ("spec.workers", {"nodes": 4, "gpusPerNode": 8}, "16 cannot be divided among 32 training processes; write 32"),
        ("spec.training.microBatchSize", 5, "spec.training.microBatchSize: 5 does not divide the 16 examples"),
        (
            "spec",
            job_with("spec.model.task", "CausalLM")["spec"]
            | {"data": {"train": [{"uri": "s3://bucket/t.csv"}], "format": "Classification"}},
            "spec.model.task: CausalLM cannot learn from Classification data",
        ),
        (
            "spec",
            job_with("spec.model.task", "SequenceClassification")["spec"] | {"evaluation": {"prompts": ["Hi"]}},
            "spec.evaluation.prompts: a classifier does not answer prompts",
        ),
        ("spec.output.formats", ["Adapter"], "spec.output.formats: Adapter needs spec.method.lora"),
        (
            "spec.training.earlyStopping",
            {"metric": "Accuracy"},
            None,
        ),
        (
            "spec.deepspeed",
            {"zeroStage": 2, "offload": "OptimizerAndParameters"},
            "spec.deepspeed.offload: OptimizerAndParameters needs zeroStage 3, not 2; or remove offload",
        ),
        ("spec.deepspeed", {"zeroStage": 0, "offload": "Optimizer"}, "Optimizer needs zeroStage 1 or 2 or 3, not 0"),
        ("spec.deepspeed", {"offload": "OptimizerAndParameters"}, None),
        (
            "spec.deepspeed.config",
            {"zero_optimization": {"offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param: is set by the job itself; remove it and use spec.deepspeed.offload",
        ),
        ("spec.deepspeed.config", {"optimizer": {}}, "spec.deepspeed.config.optimizer: is set by the job itself"),
        (
            "spec.deepspeed.config",
            {"zero_optimization": {"stage": 3}},
            "zero_optimization.stage: is set by the job itself; remove it and use spec.deepspeed.zeroStage",
        ),
        ("spec.model.uri", "file:///models/x", "spec.model.uri: file:///models/x is on one machine only"),
    ],
)
def test_a_wrong_combination_is_named_with_the_remedy(path: str, value: Any, expected: str | None) -> None:
    manifest = job_with(path, value)
    if expected is None:
        parse_job(manifest)
    else:
        assert any(expected in complaint for complaint in complaints(manifest))


def test_all_violations_come_at_once() -> None:
    manifest = job_with("spec.method", {"full": {}, "lora": {}})
    manifest["spec"]["training"] |= {"epochs": 1, "maxSteps": 2, "microBatchSize": 7}
    manifest["spec"]["output"]["formats"] = ["Merged", "Merged"]
    assert len(complaints(manifest)) == 4


def test_files_of_this_machine_are_fine_locally() -> None:
    manifest = job_with("spec.model.uri", "file:///models/x")
    assert parse_job(manifest, local=True).spec.model.uri == "file:///models/x"


def test_what_is_left_out_gets_the_documented_defaults() -> None:
    spec = parse_job(job_with("spec.training.learningRate", 1e-4)).spec
    assert spec.method.full is not None
    assert spec.method.lora is None
    assert (spec.data.validation.fraction, spec.data.test.fraction) == (0.1, 0.1)
    assert (spec.training.global_batch_size, spec.training.gradient_checkpointing) == (16, True)
    assert (spec.checkpoint.keep_last, spec.checkpoint.keep_best, spec.checkpoint.keep_every) == (2, 1, None)
    assert (spec.workers.nodes, spec.restart.max_restarts) == (1, 3)
