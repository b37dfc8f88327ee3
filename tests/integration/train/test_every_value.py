"""Every field and value that the API accepts is run. To cover a new one, see support/value_jobs.py."""

import ast
import math
import shutil
from typing import Any

import pytest

from api_values import all_values, used_values
from factories import make_job
from finetune_api.constants import Stage
from finetune_api.progress import EvaluateResult
from finetune_api.trainer_config import PreparedConfig, StorageSettings, TrainerConfig
from finetune_api.v1alpha1 import TASK_SUPPORT, Promotion, Pruning, Spec
from finetune_api.validation import parse_job
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_stage
from finetune_operator.settings import OperatorSettings
from finetune_trainer.supervisor.forkclient import RUN_RANK
from finetune_trainer.train.plan import training_plan
from process_support import ROOT
from rows import jsonl
from tiny_models import CHATML, save_tiny
from training_harness import Attempt, TrainingHarness
from value_jobs import DECIDED, RENDERED, STAGE_PODS, TRAINED, data_files, found_at, made_for


@pytest.fixture(scope="module")
def setup(harness: TrainingHarness) -> TrainingHarness:
    """The harness with data of every format, a model with a chat template, and one whose rows are whole groups."""
    for name, rows in data_files().items():
        harness.store.put(f"s3://{harness.bucket}/{name}.jsonl", jsonl(rows))
    folder = harness.models / "llama-chat"
    shutil.copytree(harness.models / "llama", folder)
    (folder / "chat_template.jinja").write_text(CHATML)
    save_tiny("bert", harness.models / "bert-wide", width=128)
    return harness


def run_stage(setup: TrainingHarness, manifest: dict[str, Any], stage: Stage) -> tuple[TrainerConfig, Attempt]:
    """Run the stage that the operator would start for the job, in separate processes."""
    config = stage_config(parse_job(manifest, local=True), 1, stage, 1, setup.settings)
    attempt = setup.run(config, target=RUN_RANK)
    assert set(attempt.exit_codes) == {0}, attempt.output
    return config, attempt


@pytest.mark.parametrize("name", TRAINED)
def test_a_job_of_the_table_completes_according_to_its_spec(setup: TrainingHarness, name: str) -> None:
    places = {
        "job": f"values-{name}",
        "bucket": setup.bucket,
        "models": f"file://{setup.models}",
        "endpoint": setup.settings.endpoint or "",
    }
    made = {"output": {"uri": f"s3://{setup.bucket}/values-{name}"}, **made_for(TRAINED[name], **places)}
    manifest = make_job(name, **made)
    if "format" not in made["data"]:
        del manifest["spec"]["data"]["format"]
    manifest["metadata"]["uid"] = "1"

    prepared = run_stage(setup, manifest, Stage.PREPARE)[1].message.prepared
    config, trained = run_stage(setup, manifest, Stage.TRAIN)
    evaluated = run_stage(setup, manifest, Stage.EVALUATE)[1].message.evaluated

    log = setup.training_log(config)
    plan = training_plan(PreparedConfig.of(config, prepared))
    assert trained.message.progress is not None
    record = setup.store.get_json(f"{config.run_uri}/run.json")
    assert record.get("learning_rate") == trained.message.progress.chosen_learning_rate
    peak = config.spec.training.learning_rate or record["learning_rate"]
    rates = [entry["learning_rate"] for entry in log if "loss" in entry]
    assert rates == pytest.approx([peak * plan.rate_factor(step) for step in range(plan.total_steps)])
    stage = config.spec.deepspeed.zero_stage
    assert trained.message.progress.zero_stage == (stage or 2)
    evaluation = setup.store.get_json(f"{config.run_uri}/evaluation.json")
    figures = [*evaluation["tuned"]["metrics"].values(), *(entry["loss"] for entry in log if "loss" in entry)]
    assert all(map(math.isfinite, figures))
    assert evaluation["headline"] in evaluation["tuned"]["metrics"]
    assert (evaluation["baseline"] is not None) == config.spec.evaluation.base_model
    baselines = config.spec.evaluation.simple_baselines
    supported = TASK_SUPPORT[evaluation["task"]].baselines if baselines is None else baselines
    assert [found["name"] for found in evaluation["baselines"]] == list(supported)
    assert len(evaluation["generations"]) == len(config.spec.evaluation.prompts)
    sets = config.spec.evaluation.regression_sets
    assert [found["name"] for found in evaluation["regression_sets"]] == [wanted.name for wanted in sets]
    assert evaluated is not None
    assert [*evaluated.tuned_sets] == [wanted.name for wanted in sets]
    assert all(math.isfinite(value) for figures in evaluated.tuned_sets.values() for value in figures.values())
    pruning = config.spec.method.full and config.spec.method.full.pruning
    assert (evaluation["pruning"] is not None) == (pruning is not None)
    if pruning is not None:
        assert_pruning_is_measured(pruning, evaluation, evaluated)
    assert evaluated is not None
    assert_exports_are_measured(config.spec, evaluation, evaluated)
    if config.spec.evaluation.promote is not None:
        assert_promotion_follows(config.spec.evaluation.promote, evaluation)
        promoted = setup.store.get_json(f"{config.output_uri}/promoted.json")["model"]["uri"]
        assert promoted.startswith(f"{config.run_uri}/")


def assert_pruning_is_measured(pruning: Pruning, evaluation: dict[str, Any], result: EvaluateResult) -> None:
    """The base model is measured once more without what is removed, and the files have less in them."""
    found = evaluation["pruning"]
    assert result.pruned == found["pruned"]["metrics"] != evaluation["baseline"]["metrics"]
    assert evaluation["tuned"]["metrics"] != found["pruned"]["metrics"]
    zeros = sum(kind["zeros"] for kind in found["kinds"])
    assert found["size"]["weights"] - found["size"]["nonzero"] >= zeros
    assert (zeros > 0) == (pruning.sparsity is not None)
    assert found["dropped_layers"] == (pruning.layers or 0)
    assert any(note.startswith(f"Pruning {pruning.algorithm}: ") for note in evaluation["notes"])


def assert_exports_are_measured(spec: Spec, evaluation: dict[str, Any], result: EvaluateResult) -> None:
    """Every export with quantized weights was loaded again and measured on the test split."""
    titles = ["Int8"] if "Int8" in spec.output.formats else []
    titles += [f"GGUF {kind}" for kind in spec.output.gguf_types]
    if "CompressedTensors" in spec.output.formats:
        titles.append(f"CompressedTensors {spec.output.compressed_tensors_scheme}")
    if not titles:
        assert (evaluation["quantized"], result.exports) == (None, {})
        return
    exports = evaluation["quantized"]["exports"]
    assert [export["title"] for export in exports] == titles
    assert list(result.exports) == ["tuned", *(export["name"] for export in exports)]
    for export in exports:
        assert export["bytes"] == result.exports[export["name"]].bytes > 0
        assert export["figures"]["metrics"] == result.exports[export["name"]].metrics
        assert export["figures"]["metrics"] != evaluation["tuned"]["metrics"]
        assert any(entry["uri"] == export["address"]["uri"] for entry in evaluation["reloaded"])


def assert_promotion_follows(rules: Promotion, evaluation: dict[str, Any]) -> None:
    """The first model of a prefix is promoted after one check for each bound."""
    decision = evaluation["promotion"]
    bounds = [bound for entry in rules.thresholds for bound in (entry.min, entry.max) if bound is not None]
    gains = [] if rules.min_gain_over_base_model is None else [rules.min_gain_over_base_model]
    regressions = [] if rules.max_regression is None else [-rules.max_regression] * len(evaluation["regression_sets"])
    assert (decision["outcome"], decision["metric"]) == ("Promoted", rules.metric), decision
    assert [check["text"].rsplit(" ", 1)[1] for check in decision["checks"]] == [
        f"{bound:.6g}" for bound in [*bounds, *gains, *regressions]
    ]


@pytest.mark.parametrize("row", RENDERED)
def test_a_field_for_the_cluster_is_where_kubernetes_expects_it(row: str) -> None:
    workers, path, expected = RENDERED[row]
    config = stage_config(parse_job(make_job(workers=workers)), 1, Stage.TRAIN, 1, StorageSettings())
    assert found_at(render_stage(config, OperatorSettings())[-1]["spec"], path) == expected


@pytest.mark.parametrize("row", STAGE_PODS)
def test_a_field_of_another_stage_is_where_kubernetes_expects_it(row: str) -> None:
    stage, block, path, expected = STAGE_PODS[row]
    config = stage_config(parse_job(make_job(stages={stage: block})), 1, Stage(stage), 1, StorageSettings())
    assert found_at(render_stage(config, OperatorSettings())[-1]["spec"], path) == expected


@pytest.mark.parametrize("value", DECIDED)
def test_a_value_that_only_the_operator_uses_has_a_test_of_its_effect(value: str) -> None:
    used, file, name = DECIDED[value]
    source = (ROOT / "tests" / file).read_text()
    tests = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert name in tests, f"{file} must have the test that DECIDED names for {value}"
    first = min(node.lineno for node in (tests[name], *tests[name].decorator_list))
    written = "\n".join(source.splitlines()[first - 1 : tests[name].end_lineno])
    assert used in written, f"{name} must use {value} as {used}"


def test_every_field_and_value_of_the_api_is_covered() -> None:
    covered = set(DECIDED)
    for spec in TRAINED.values():
        covered |= set(used_values(spec)) | {"output.uri"}
    for workers, _, _ in RENDERED.values():
        covered |= set(used_values({"workers": workers}))
    for stage, block, _, _ in STAGE_PODS.values():
        covered |= set(used_values({"stages": {stage: block}}))
    assert sorted(set(all_values(Spec)) - covered) == []
