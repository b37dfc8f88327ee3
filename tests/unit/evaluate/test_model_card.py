"""The model card: metadata for the hub, text for people."""

import dataclasses

import pytest
from huggingface_hub import ModelCard
from ruamel.yaml import YAML

from finetune_api.comparison import OVERFLOW
from finetune_api.v1alpha1 import ArtifactFormat, Metric, Task
from finetune_trainer.evaluate.model_card import code, model_card, plain
from finetune_trainer.evaluate.records import Reloaded


def card_of(inputs, artifact=ArtifactFormat.MERGED) -> str:
    return model_card(inputs.record, inputs.config, inputs.data, artifact)


def front_of(card: str) -> dict:
    assert card.startswith("---\n")
    return YAML(typ="safe").load(card.split("---\n")[1])


def test_the_front_matter_has_what_the_hub_requires(report_inputs):
    front = front_of(card_of(report_inputs()))
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert front["base_model_relation"] == "finetune"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-classification"
    assert "finetune-operator" in front["tags"]
    (result,) = front["model-index"][0]["results"]
    assert {metric["type"] for metric in result["metrics"]} == {"loss", "accuracy", "f1"}


def test_the_front_matter_has_the_metrics_in_model_index_form(report_inputs):
    inputs = report_inputs()
    figures = inputs.record.tuned.metrics
    assert front_of(card_of(inputs)) == {
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["finetune-operator", "fine-tuned"],
        "model-index": [
            {
                "name": "topics-r0001",
                "results": [
                    {
                        "task": {"type": "text-classification", "name": "Text classification"},
                        "dataset": {"type": "topics", "name": "Test split of topics", "split": "test"},
                        "metrics": [
                            {"type": "loss", "name": "Loss", "value": round(figures[Metric.LOSS], 6)},
                            {"type": "accuracy", "name": "Accuracy", "value": round(figures[Metric.ACCURACY], 6)},
                            {"type": "f1", "name": "Macro F1", "value": round(figures[Metric.MACRO_F1], 6)},
                        ],
                    }
                ],
            }
        ],
    }


def test_an_overflowed_metric_is_omitted_for_the_hub(report_inputs):
    inputs = report_inputs(Task.CAUSAL_LM)
    metrics = {Metric.LOSS: 1895.0, Metric.PERPLEXITY: OVERFLOW}
    tuned = inputs.record.tuned.model_copy(update={"metrics": metrics})
    inputs = dataclasses.replace(inputs, record=inputs.record.model_copy(update={"tuned": tuned}))
    (result,) = front_of(card_of(inputs))["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["loss"]


def test_without_a_finite_metric_there_is_no_model_index(report_inputs):
    inputs = report_inputs(Task.CAUSAL_LM)
    tuned = inputs.record.tuned.model_copy(update={"metrics": {Metric.LOSS: OVERFLOW, Metric.PERPLEXITY: OVERFLOW}})
    inputs = dataclasses.replace(inputs, record=inputs.record.model_copy(update={"tuned": tuned}))
    card = card_of(inputs)
    assert "model-index" not in front_of(card)
    assert ModelCard(card, ignore_metadata_errors=False).data.eval_results is None


def test_the_hubs_own_parser_finds_the_metrics(report_inputs):
    card = ModelCard(card_of(report_inputs()), ignore_metadata_errors=False)
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(0.875598)


def test_an_adapter_is_declared_as_one(report_inputs):
    inputs = report_inputs(spec={"method": {"lora": {"rank": 8}}})
    card = card_of(inputs, ArtifactFormat.ADAPTER)
    front = front_of(card)
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")
    assert "lora" in front["tags"]
    assert "PeftModel.from_pretrained" in card
    assert 'config = AutoConfig.from_pretrained("./model")' in card
    assert "config=config)" in card


def test_a_card_has_the_required_versions_and_the_result_of_the_check(report_inputs):
    inputs = report_inputs()
    checked = Reloaded(
        uri=inputs.config.model_uri, split="validation", rows=32, trained=0.41237, reloaded=0.41241, tolerance=0.001
    )
    record = inputs.record.model_copy(update={"reloaded": (checked,)})
    card = model_card(record, inputs.config, inputs.data, ArtifactFormat.MERGED)
    assert "requires transformers 4.57 or newer" in card
    assert "saved with transformers 5.23.0" in card
    assert "the loss is 0.4124 on 32 rows of the validation split; the trained model had 0.4124" in card
    other = model_card(record, inputs.config, inputs.data, ArtifactFormat.ADAPTER)
    assert "PEFT 0.17 or newer" in other
    assert "0.4124" not in other


def test_an_adapters_card_pins_the_revision_of_its_base(report_inputs):
    inputs = report_inputs(Task.CAUSAL_LM, spec={"method": {"lora": {}}, "model": {"uri": "hf://org/name@v2"}})
    card = card_of(inputs, ArtifactFormat.ADAPTER)
    assert front_of(card)["base_model"] == "org/name"
    assert 'AutoModelForCausalLM.from_pretrained("org/name", revision="v2")' in card


def test_a_language_model_is_loaded_as_one(report_inputs):
    card = card_of(report_inputs(Task.CAUSAL_LM))
    assert front_of(card)["pipeline_tag"] == "text-generation"
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "Weakest classes" not in card
    assert "not whether its answers are right, helpful or safe" in card


def test_without_a_test_split_the_card_has_no_metrics_and_a_limitation(report_inputs):
    card = card_of(report_inputs(tuned=False))
    assert "model-index" not in front_of(card)
    assert "Nothing was measured on held-out data" in card


def test_limits_name_classes_that_were_rarely_tested(report_inputs):
    inputs = report_inputs(labels=("a", "b"))
    few = inputs.record.tuned.classification.per_class[0].model_copy(update={"support": 3, "label": "rare | odd"})
    changes = {"per_class": (few,), "confusion": (), "rarely_tested": 1}
    figures = inputs.record.tuned.classification.model_copy(update=changes)
    tuned = inputs.record.tuned.model_copy(update={"classification": figures})
    record = inputs.record.model_copy(update={"tuned": tuned})
    card = model_card(record, inputs.config, inputs.data, ArtifactFormat.MERGED)
    assert r"fewer than 10 test examples, whose metrics are imprecise: rare \| odd" in card


def test_labels_cannot_break_out_of_a_table(report_inputs):
    card = card_of(report_inputs(labels=("a|b\n# Heading", "<script>x</script>", "c")))
    assert "\n# Heading" not in card.split("## Configuration")[0].split("## Usage")[1]
    assert "<script>" not in card


def test_a_fence_in_a_prompt_does_not_end_the_configuration(report_inputs):
    card = card_of(report_inputs(Task.CAUSAL_LM, spec={"evaluation": {"prompts": ["```\n# Heading\n```"]}}))
    assert "\n````yaml\n" in card


def test_secrets_of_the_environment_are_not_in_the_card(report_inputs):
    assert "hf_secret" not in card_of(report_inputs())


@pytest.mark.parametrize(
    ("text", "shown"), [("a_b*c", r"a\_b\*c"), ("<b>&", "&lt;b&gt;&amp;"), ("x\n\n  y", "x y"), ("`|`", r"\`\|\`")]
)
def test_plain_text_is_escaped(text, shown):
    assert plain(text) == shown


def test_code_has_no_backticks():
    assert code("a`b") == "`a'b`"
