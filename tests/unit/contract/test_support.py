"""The support table rejects what its rows exclude: in a spec, in CEL and on the page, also for new rows."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from factories import any_of, make_job
from finetune_api.crd import CEL_RULES
from finetune_api.rules import lowest_zero_stage, violations
from finetune_api.support import OFFLOAD_ZERO_STAGES, SUPPORT, ZERO_STAGES, Support
from finetune_api.v1alpha1 import (
    METRIC_SUPPORT,
    TASK_SUPPORT,
    ArtifactFormat,
    DataFormat,
    Dtype,
    Method,
    MethodBlock,
    MethodSupport,
    Metric,
    Offload,
    Quantization,
    Spec,
    Task,
    TaskSupport,
)
from finetune_api.validation import InvalidJobError, parse_job


class Prefix(MethodBlock):
    """A method that supports few stages, cannot be merged and does not recompute activations."""

    support: ClassVar[MethodSupport] = MethodSupport(
        formats=(ArtifactFormat.ADAPTER,),
        tasks=(Task.CAUSAL_LM,),
        zero_stages=(0, 2),
        gradient_checkpointing=(False,),
    )

    length: int = 8


class MoreMethods(Method):
    """The API with an additional field."""

    prefix_tokens: Prefix | None = None


class MoreSpec(Spec):
    """A spec with that field."""

    method: MoreMethods


RANKING = cast(Task, "Ranking")
MORE = Support(
    methods={name: block.support for name, block in MoreMethods.blocks().items()},
    tasks={
        **SUPPORT.tasks,
        RANKING: TaskSupport(
            "ranker", (DataFormat.TEXT,), (Metric.LOSS,), Metric.LOSS, has_labels=False, answers_prompts=False
        ),
    },
    offload=OFFLOAD_ZERO_STAGES,
)
PREFIX = {"prefixTokens": {}}
METHODS = ", ".join(Method.blocks())
MERGED = any_of([f"method.{name}" for name, row in SUPPORT.methods.items() if ArtifactFormat.MERGED in row.formats])

QUANTIZED = any_of([f"method.{name}" for name, row in SUPPORT.methods.items() if row.quantizations])


def spec_with(*, task: str | None = None, **change: Any) -> MoreSpec:
    only_adapter = {"method": PREFIX, "output": {"formats": ["Adapter"]}} if "method" not in change else {}
    document = make_job(**{**only_adapter, "training": {"gradientCheckpointing": False}, **change})["spec"]
    spec = MoreSpec.model_validate(document)
    return spec.model_copy(update={"model": spec.model.model_copy(update={"task": task})}) if task else spec


TEXT = {"data": {"format": "Text"}}


@pytest.mark.parametrize(
    ("change", "refusals"),
    [
        (TEXT, []),
        (TEXT | {"deepspeed": {"zeroStage": 2}}, []),
        (TEXT | {"output": {"formats": ["Adapter"]}}, []),
        (
            TEXT | {"output": {"formats": ["Merged"]}},
            [
                f"spec.output.formats must not have Merged without spec.{MERGED}; write [Adapter], because the default "
                f"is [Merged], or set {MERGED}"
            ],
        ),
        (
            TEXT | {"deepspeed": {"zeroStage": 3}},
            ["spec.deepspeed.zeroStage must be 0 or 2 with method.prefixTokens, not 3; write 0"],
        ),
        (
            TEXT | {"deepspeed": {"offload": "OptimizerAndParameters"}},
            [
                "spec.deepspeed.offload must be None or Optimizer with method.prefixTokens, not "
                "OptimizerAndParameters; "
                "write None"
            ],
        ),
        (
            TEXT | {"training": {}},
            [
                "spec.training.gradientCheckpointing must be false with method.prefixTokens, not true; write "
                "gradientCheckpointing: false, because the default is true"
            ],
        ),
        (
            TEXT | {"training": {"gradientCheckpointing": True}},
            [
                "spec.training.gradientCheckpointing must be false with method.prefixTokens, not true; write "
                "gradientCheckpointing: false, because the default is true"
            ],
        ),
        ({}, ["spec.model.task must be CausalLM with method.prefixTokens, not SequenceClassification; write CausalLM"]),
        (
            TEXT | {"task": "Ranking"},
            ["spec.model.task must be CausalLM with method.prefixTokens, not Ranking; write CausalLM"],
        ),
        (TEXT | {"task": "Ranking", "method": {"full": {}}}, []),
        (
            {"task": "Ranking", "method": {"full": {}}},
            [
                "spec.model.task must fit spec.data.format, Classification, and Ranking does not; remove task, or set "
                "format to Text"
            ],
        ),
        (
            TEXT | {"task": "Ranking", "method": {"full": {}}, "evaluation": {"prompts": ["a"]}},
            ["spec.evaluation.prompts must be empty for a ranker, which does not answer prompts; remove them"],
        ),
        (
            TEXT
            | {
                "task": "Ranking",
                "method": {"full": {}},
                "training": {"earlyStopping": {"metric": "Accuracy"}},
            },
            ["spec.training.earlyStopping.metric must be a metric of rankers, not Accuracy; write Loss"],
        ),
    ],
)
def test_rows_for_a_new_method_and_a_new_task_accept_and_reject(change: dict[str, Any], refusals: list[str]) -> None:
    assert [f"{path} {message}" for path, message in MORE.refusals(spec_with(**change))] == refusals


def test_every_new_row_gets_its_cel_rules() -> None:
    rules = dict(MORE.cel_rules())
    assert {rule: rules[rule] for rule in rules if "prefixTokens" in rule} == {
        "!(has(self.method.prefixTokens)) || !has(self.output.formats) || "
        "self.output.formats.all(one, one in ['Adapter'])": "output.formats must not have Merged, Int8, GGUF or "
        "CompressedTensors without "
        f"{MERGED}; "
        f"write [Adapter], because the default is [Merged], or set {MERGED}",
        "!(has(self.method.prefixTokens)) || !has(self.deepspeed.zeroStage) || "
        "self.deepspeed.zeroStage in [0, 2]": "deepspeed.zeroStage must be 0 or 2 with "
        "method.prefixTokens, not 1 or 3; "
        "write 0",
        "!(has(self.method.prefixTokens)) || !has(self.deepspeed.offload) || "
        "self.deepspeed.offload in ['None', 'Optimizer']": "deepspeed.offload must be None or Optimizer with "
        "method.prefixTokens, not OptimizerAndParameters; "
        "write None",
        "!(has(self.method.prefixTokens)) || !has(self.training.gradientCheckpointing) || "
        "self.training.gradientCheckpointing in [false]": "training.gradientCheckpointing must be false with "
        "method.prefixTokens, not true; write gradientCheckpointing: false, because the default is true",
        "!(has(self.method.prefixTokens)) || !has(self.model.quantization)": "model.quantization must not be NF4 or "
        f"Int8 with method.prefixTokens, because quantized weights cannot be trained; remove it, or set {QUANTIZED}",
        "!(has(self.method.prefixTokens)) || !(has(self.model.task) ? self.model.task == 'SequenceClassification' : "
        "(has(self.data.format) && self.data.format in ['Classification'])) && "
        "!(has(self.model.task) ? self.model.task == 'MaskedLM' : (false)) && "
        "!(has(self.model.task) ? self.model.task == 'TokenClassification' : "
        "(has(self.data.format) && self.data.format in ['TokenClassification'])) && "
        "!(has(self.model.task) ? self.model.task == 'Preference' : "
        "(has(self.data.format) && self.data.format in ['Preference'])) && "
        "!(has(self.model.task) ? self.model.task == 'Ranking' : (false))": "model.task must be CausalLM with "
        "method.prefixTokens, not SequenceClassification, MaskedLM, TokenClassification, Preference or "
        "Ranking; write CausalLM, or method: {lora: {}} for Preference, because the reference model of DPO is "
        "the base model of the same process without its adapter",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"format": "Chat"}}, ""),
        ({"data": {"format": "Text"}, "method": {"lora": {}}}, ""),
        (
            {"data": {"format": "Classification"}},
            "must be Padded or LengthGrouped for a classifier, not Packed; write Padded",
        ),
        (
            {"data": {"format": "TokenClassification"}},
            "must be Padded or LengthGrouped for a token classifier, not Packed; write Padded",
        ),
        (
            {"data": {"format": "Text"}, "model": {"task": "MaskedLM"}},
            "must be Padded or LengthGrouped for a masked language model, not Packed; write Padded",
        ),
        (
            {"data": {"format": "Text"}, "method": {"promptTuning": {}}, "output": {"formats": ["Adapter"]}},
            "must be Padded or LengthGrouped with method.promptTuning, not Packed; write Padded",
        ),
    ],
)
def test_packs_are_for_language_models_without_virtual_tokens(change: dict[str, Any], message: str) -> None:
    job = make_job(**change)
    job["spec"]["training"] = {"batching": "Packed"}
    if not message:
        parse_job(job)
        return
    with pytest.raises(InvalidJobError) as error:
        parse_job(job)
    assert [str(violation) for violation in error.value.violations] == [f"spec.training.batching {message}"]
    assert any(
        rule.endswith("self.training.batching in ['Padded', 'LengthGrouped']") for rule, _ in SUPPORT.cel_rules()
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"lora": {}}, "deepspeed": {"zeroStage": 2, "offload": "Optimizer"}}, ""),
        ({"method": {"layerNormTuning": {}}}, ""),
        (
            {"method": {"full": {}}},
            "spec.model.quantization must not be {kind} with method.full, because quantized weights cannot be trained; "
            f"remove it, or set {QUANTIZED}",
        ),
        (
            {"method": {"lora": {}}, "deepspeed": {"zeroStage": 3}},
            "spec.deepspeed.zeroStage must be 0 or 1 or 2 with quantization {kind}, not 3; write 0",
        ),
        (
            {"method": {"ia3": {}}, "deepspeed": {"offload": "OptimizerAndParameters"}},
            "spec.deepspeed.offload must be None or Optimizer with quantization {kind}, not OptimizerAndParameters; "
            "write None",
        ),
    ],
)
@pytest.mark.parametrize("kind", Quantization)
def test_quantized_base_models_are_for_adapters_without_partitioned_parameters(
    kind: Quantization, change: dict[str, Any], message: str
) -> None:
    job = make_job(**change)
    job["spec"]["model"]["quantization"] = kind.value
    if not message:
        parse_job(job)
        return
    with pytest.raises(InvalidJobError) as error:
        parse_job(job)
    assert [str(violation) for violation in error.value.violations] == [message.format(kind=kind)]


def test_every_rule_of_the_table_is_in_the_crd() -> None:
    assert set(SUPPORT.cel_rules()) <= set(CEL_RULES["spec"])


def test_every_restriction_is_reported_for_every_rejected_value() -> None:
    for restriction in SUPPORT.restrictions():
        for value in restriction.refused:
            assert f"{value}" in restriction.requirement(value) or value == "prompts", restriction.path


@pytest.mark.parametrize("offload", Offload)
@pytest.mark.parametrize("dtype", Dtype)
def test_every_offload_with_every_type_has_a_supported_stage(offload: Offload, dtype: Dtype) -> None:
    stages = SUPPORT.zero_stages("full", offload, dtype)
    assert stages == ZERO_STAGES[lowest_zero_stage(offload, dtype) :]


def test_the_page_has_a_row_for_every_method_and_every_task() -> None:
    rows = [line.split("|")[1].strip() for line in MORE.page().splitlines() if line.startswith("| `")]
    assert {"`full`", "`lora`", "`prefixTokens`", *(f"`{task}`" for task in Task), "`Ranking`"} <= set(rows)


def test_every_metric_has_a_row_and_a_task() -> None:
    assert list(METRIC_SUPPORT) == list(Metric)
    assert {metric for row in TASK_SUPPORT.values() for metric in row.metrics} == set(Metric)
    assert all({row.headline, Metric.LOSS} <= set(row.metrics) for row in TASK_SUPPORT.values())


ROOT = Path(__file__).parents[3]
DECLARE_METRICS = ("operator/finetune_api/v1alpha1/", "trainer/finetune_trainer/tasks/")


def metrics_named(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Metric":
            yield node.attr


def test_a_metric_is_named_only_by_its_row_and_the_tasks_that_have_it() -> None:
    """All others ask the table, so that a new metric needs no edit there. Every task has a loss."""
    paths = [path for root in ("operator", "trainer") for path in (ROOT / root).rglob("*.py")]
    named = {str(path.relative_to(ROOT)): {*metrics_named(path)} - {"LOSS"} for path in paths}
    assert sum(bool(metrics) for metrics in named.values()) > 3
    assert [path for path, metrics in named.items() if metrics and not path.startswith(DECLARE_METRICS)] == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({}, f"spec.method must have exactly one of {METHODS}, prefixTokens, not none; keep one block"),
        (
            {"full": {}, "lora": {}, "prefixTokens": {}},
            f"spec.method must have exactly one of {METHODS}, prefixTokens, not 3 of them; keep one block",
        ),
    ],
)
def test_the_rule_of_exactly_one_method_follows_the_fields(method: dict[str, Any], message: str) -> None:
    spec = spec_with(method=method)
    assert message in [str(violation) for violation in violations(spec)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": {"adapters": {}}}, f"spec.method.adapters: unknown field; known fields: {METHODS}"),
        (
            {"method": {"loar": {}}},
            f"spec.method.loar: unknown field; did you mean lora? The methods are {METHODS}",
        ),
        (
            {"model": {"task": "Summarise"}},
            "spec.model.task must be one of SequenceClassification, CausalLM, MaskedLM, TokenClassification or "
            'Preference, not "Summarise"',
        ),
    ],
)
def test_an_unknown_method_or_task_is_rejected_with_the_known_ones(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidJobError) as error:
        parse_job(make_job(**change))
    assert message in [str(violation) for violation in error.value.violations]
