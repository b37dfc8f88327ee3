"""Operator and trainer of adjacent versions can read each other's output."""

import json
from pathlib import Path
from typing import Any

import pytest

from factories import make_job, make_prepared
from finetune_api.constants import Stage
from finetune_api.progress import Progress, TerminationMessage
from finetune_api.trainer_config import CONFIG_VERSION, StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import AttemptPlan, Metric, SimpleBaseline
from finetune_api.validation import parse_job
from finetune_operator.policy.world import stage_config
from finetune_trainer.errors import BadConfigError
from finetune_trainer.rank_main import read_config
from finetune_trainer.run_record import PreparedRun


def config_of(**spec: Any) -> TrainerConfig:
    plan = AttemptPlan(nodes=2, micro_batch_size=8, gradient_accumulation_steps=1)
    job = parse_job(make_job(workers={"nodes": 2}, **spec))
    return stage_config(job, 3, Stage.TRAIN, 2, StorageSettings(endpoint="https://s3.example.com"), (), plan)


def written(config: TrainerConfig, folder: Path, **changes: Any) -> Path:
    """The file as an operator writes it, with additional fields of a newer version."""
    content = json.loads(config.to_json())
    for path, value in changes.items():
        *above, name = path.split("__")
        block = content
        for part in above:
            block = block.setdefault(part, {})
        block[name] = value
    file = folder / "config.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    "spec",
    [{}, {"method": {"lora": {"rank": 4}}}, {"training": {"warmup": {"ratio": 0.1}, "microBatchSize": 4}}],
    ids=str,
)
def test_a_trainer_reads_what_its_operator_writes(spec: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(**spec)
    assert read_config(written(config, tmp_path)) == config


def test_default_fields_are_not_written_so_that_an_older_trainer_can_read_the_file() -> None:
    content = json.loads(config_of().to_json())
    assert content["version"] == CONFIG_VERSION
    assert content["spec"].keys() <= {"model", "data", "training", "output", "workers"}
    assert "label_smoothing" not in content["spec"]["training"]
    assert "attempts" not in content


@pytest.mark.parametrize("name", ["lineage", "world__racks", "batch__warmup", "plan__excluded_nodes", "storage__tier"])
def test_an_older_trainer_ignores_new_fields_outside_the_spec(name: str, tmp_path: Path) -> None:
    assert read_config(written(config_of(), tmp_path, **{name: 7})) == config_of()


def test_an_older_trainer_rejects_a_field_of_the_spec_that_it_does_not_support(tmp_path: Path) -> None:
    path = written(config_of(), tmp_path, spec__training__loss_scale=2, spec__pruning={"sparsity": 0.5})
    with pytest.raises(BadConfigError) as caught:
        read_config(path)
    assert "spec.training.lossScale, spec.pruning: unknown to this trainer" in str(caught.value)
    assert "trainer image of the operator's version" in caught.value.advice


def test_a_file_of_a_newer_format_is_rejected_by_its_version(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match=rf"version must be at most {CONFIG_VERSION}, not {CONFIG_VERSION + 1}"):
        read_config(written(config_of(), tmp_path, version=CONFIG_VERSION + 1))


def test_a_file_of_an_operator_without_versions_is_read(tmp_path: Path) -> None:
    path = written(config_of(), tmp_path)
    content = json.loads(path.read_text())
    del content["version"], content["plan"]
    path.write_text(json.dumps(content))
    assert read_config(path) == config_of().model_copy(update={"plan": None})


def test_an_older_operator_ignores_what_a_newer_trainer_adds() -> None:
    message = TerminationMessage(stage="train", exit_code=0, progress=Progress(stage="train", step=7))
    content = json.loads(message.encode())
    content |= {"lineage": ["a"]}
    content["progress"] |= {"gpu_temperature": 60}
    assert TerminationMessage.decode(json.dumps(content)) == message
    assert Progress.decode(json.dumps(content["progress"]).encode()) == message.progress


def test_an_older_operator_ignores_a_metric_that_a_newer_trainer_adds() -> None:
    said = {"stage": "train", "step": 7, "evaluation": {"Loss": 0.5, "Rouge": 0.1}}
    figures = {"report_uri": "s3://b/report.html", "baseline": {"Rouge": 0.1}, "tuned": {"Accuracy": 0.5, "Rouge": 0.2}}
    figures["baselines"] = {"Oracle": {"Loss": 0.0}, "MajorityClass": {"Loss": 1.0, "Rouge": 0.2}}
    message = {"stage": "evaluate", "exit_code": 0, "progress": said, "evaluated": figures}
    found = TerminationMessage.decode(json.dumps(message))
    assert found is not None
    assert found.progress is not None
    assert found.evaluated is not None
    assert (found.progress.step, found.progress.evaluation) == (7, {Metric.LOSS: 0.5})
    assert (found.evaluated.baseline, found.evaluated.tuned) == ({}, {Metric.ACCURACY: 0.5})
    assert found.evaluated.baselines == {SimpleBaseline.MAJORITY_CLASS: {Metric.LOSS: 1.0}}


def test_stages_read_the_prepared_part_of_a_record_with_any_other_fields() -> None:
    prepared = make_prepared()
    older = {"spec": {"output": {"uri": "s3://b/out", "formats": None}}, "job": {"namespace": "n"}, "novel": 1}
    text = json.dumps({**older, "prepared": {**prepared.model_dump(mode="json"), "novel": 2}})
    assert PreparedRun.model_validate_json(text).prepared == prepared
