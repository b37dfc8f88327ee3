"""The report: complete, self-contained, and safe for any data."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from finetune_api.comparison import metric_text
from finetune_api.v1alpha1 import ArtifactFormat, Metric, PromotionOutcome, Task
from finetune_trainer.data.info import RuleInfo, ShownRecord, WeightInfo
from finetune_trainer.evaluate.compare import limit_classes
from finetune_trainer.evaluate.model_card import model_card
from finetune_trainer.evaluate.records import Generation, PromotionDecision, RegressionResult
from finetune_trainer.evaluate.report import ReportInputs, render_report
from finetune_trainer.evaluate.training_log import TrainingPhase
from finetune_trainer.learning_rate import ChosenRate, choose, rates_to_test
from finetune_trainer.promotion.records import Check
from finetune_trainer.tasks.metrics import classification_metrics

EVIL = "<script>alert('x')</script>"
MAX_BYTES = 500_000
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes and visible text; raises AssertionError if tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data + " "


def test_report_and_card_have_a_row_for_each_simple_baseline(report_inputs, linear_baseline):
    inputs = report_inputs(baselines=(linear_baseline(0.85, 12, 9, 0.66),))
    page, card = (
        Page(render_report(inputs)).text,
        model_card(inputs.record, inputs.config, inputs.data, ArtifactFormat.MERGED),
    )
    assert "95 % interval 80.0 % to 90.0 %" in page
    assert "always predicting the most frequent class" not in page
    assert "| | Loss | Accuracy | Macro F1 |\n|---|---:|---:|---:|\n" in card
    assert "| TF-IDF with logistic regression | 0.900 | 85.0 % | 85.0 % |\n" in card
    for text in (page, card):
        assert text.count("The model is not significantly better than TF-IDF with logistic regression") == 2
        assert "It is fitted to 50,000 of the 90,000 training rows." in text


@pytest.fixture(scope="module")
def classifier_page(report_inputs) -> str:
    return render_report(report_inputs(notes=("A note.",)))


@pytest.fixture(scope="module")
def language_page(report_inputs) -> str:
    generations = (Generation(prompt="Hello?", before="Hello? Hello?", after="Good day."),)
    return render_report(report_inputs(Task.CAUSAL_LM, generations=generations))


@pytest.mark.parametrize("name", ["classifier_page", "language_page"])
def test_the_page_is_one_small_self_contained_file(name, request):
    text = request.getfixturevalue(name)
    page = Page(text)
    assert len(text.encode()) < MAX_BYTES
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    assert "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    loads = [value for _, key, value in page.attributes if key in {"src", "href", "xlink:href", "srcset", "action"}]
    assert all(value.startswith("#") for value in loads)
    assert not [key for _, key, _ in page.attributes if key.startswith("on")]
    assert "default-src 'none'" in text


def test_the_page_has_all_sections(classifier_page):
    text = " ".join(Page(classifier_page).text.split())
    for words in (
        "topics r0001",
        "Accuracy 3.3 % → 87.6 %",
        "+84.2 points",
        "A note.",
        "Before and after",
        "always predicting the most frequent class has an accuracy of 5.3 %",
        "Learning rate",
        "Attempt 2",
        "OutOfMemory",
        "from the checkpoint of step 80, to step 240",
        "16 steps repeated",
        "Time per phase",
        "Classes, weakest first",
        "Most frequent mistakes",
        "Confusion matrix",
        "Dropped: empty text",
        "Length of the training examples",
        "learningRate: 5e-05",
        "maxNewTokens: 64",
        "transformers",
        "5.23.0",
    ):
        assert words in text


def test_answers_are_shown_next_to_each_other(language_page):
    text = " ".join(Page(language_page).text.split())
    assert "Hello? Base model Hello? Hello? Fine-tuned Good day." in text
    assert "Confusion matrix" not in text


def test_markup_in_the_data_is_shown_not_executed(report_inputs):
    inputs = report_inputs(
        labels=(EVIL, "b", "c"),
        notes=(EVIL,),
        spec={"run_nonce": "x"},
    )
    text = render_report(inputs)
    assert EVIL not in text
    assert EVIL in Page(text).text
    generations = (Generation(prompt=EVIL, before=EVIL, after='"><img src=x>'),)
    spec = {"evaluation": {"prompts": [EVIL]}, "model": {"uri": "s3://corp/<script>alert(1)</script>/m"}}
    text = render_report(report_inputs(Task.CAUSAL_LM, generations=generations, spec=spec))
    assert not {"script", "img"} & set(Page(text).tags)


def test_each_cleaning_rule_is_shown_with_its_counts_and_examples(report_inputs):
    examples = (ShownRecord(place="s3://bucket/a.jsonl line 3", text="<b>caf\u00e9</b>"),)
    rules = (RuleInfo(rule="unicode repair", changed=1_234, examples=examples), RuleInfo(rule="length", dropped=7))
    inputs = report_inputs()
    page = render_report(dataclasses.replace(inputs, data=dataclasses.replace(inputs.data, rules=rules)))
    words = " ".join(re.sub("<[^>]*>", " ", page.partition("<h3>Preparation</h3>")[2]).split())
    assert "unicode repair 1,234 0 &lt;b&gt;caf\u00e9&lt;/b&gt; s3://bucket/a.jsonl line 3 length 0 7" in words
    assert "Preparation" not in render_report(inputs)


def test_each_reason_of_a_cleaning_rule_is_shown_with_its_count(report_inputs):
    reasons = {EVIL: 1_200, "fewer than 50 words": 34}
    rules = (RuleInfo(rule="quality", dropped=1_234, reasons=reasons), RuleInfo(rule="length", dropped=7))
    inputs = report_inputs()
    page = render_report(dataclasses.replace(inputs, data=dataclasses.replace(inputs.data, rules=rules)))
    words = " ".join(re.sub("<[^>]*>", " ", page.partition("<h3>Preparation</h3>")[2]).split())
    assert "quality 0 1,234 " in words
    assert ": 1,200 fewer than 50 words: 34 length 0 7" in words
    assert not {"script", "img"} & set(Page(page).tags)


def test_records_of_each_source_are_shown_before_and_after_weights(report_inputs):
    weights = (
        WeightInfo(uri=f"s3://bucket/{EVIL}.jsonl", weight=2, before=1_000, after=2_000),
        WeightInfo(uri="s3://bucket/general.jsonl", weight=0.3, before=500, after=150),
    )
    spec = {"data": {"train": [{"uri": source.uri, "weight": source.weight} for source in weights]}}
    inputs = report_inputs(spec=spec)
    inputs = dataclasses.replace(inputs, data=dataclasses.replace(inputs.data, weights=weights))
    page = render_report(inputs)
    assert EVIL not in page
    words = " ".join(Page(page).text.split())
    assert "Source Weight Records Records with weight" in words
    assert "s3://bucket/general.jsonl 0.3 500 150" in words
    card = model_card(inputs.record, inputs.config, inputs.data, ArtifactFormat.MERGED)
    assert "- `s3://bucket/general.jsonl` with the weight 0.3\n" in card
    assert "- 500 records of `s3://bucket/general.jsonl` count as 150\n" in card


def test_each_regression_set_has_its_metrics_before_and_after_training(report_inputs):
    inputs = report_inputs(Task.CAUSAL_LM)
    record = inputs.record
    sets = (
        RegressionResult(name="general", baseline=record.tuned, tuned=record.baseline, paired_test=record.paired_test),
        RegressionResult(name="questions", tuned=record.baseline, dropped=3),
    )
    inputs = dataclasses.replace(inputs, record=record.model_copy(update={"regression_sets": sets}))
    words = " ".join(Page(render_report(inputs)).text.split())
    losses = [metric_text(Metric.LOSS, model.metrics[Metric.LOSS]) for model in (record.tuned, record.baseline)]
    assert f"Set Metric Base model Fine-tuned Change general Loss {losses[0]} {losses[1]} +" in words
    assert f"questions Loss \u2013 {losses[1]} \u2013" in words
    assert "questions: Perplexity is " in words
    assert "3 records cannot be used." in words
    card = model_card(inputs.record, inputs.config, inputs.data, ArtifactFormat.MERGED)
    assert f"| general | Loss | {losses[0]} | {losses[1]} | +" in card
    assert "\n- questions: Perplexity is " in card
    assert "Regression sets" not in render_report(report_inputs())


def test_copies_of_training_records_are_counted_and_shown(report_inputs):
    examples = (ShownRecord(place="s3://bucket/a.jsonl line 3", text=f"'a good film' is now 'good a {EVIL}'"),)
    rules = (RuleInfo(rule="length", dropped=7), RuleInfo(rule="augmentation", added=1_080, examples=examples))
    inputs = report_inputs()
    inputs = dataclasses.replace(inputs, data=dataclasses.replace(inputs.data, rules=rules))
    page = render_report(inputs)
    assert EVIL not in page
    words = " ".join(Page(page).text.split())
    assert "changed copies 1,080" in words
    assert f"length 0 7 0 augmentation 0 0 1,080 'a good film' is now 'good a {EVIL}'" in words
    card = model_card(inputs.record, inputs.config, inputs.data, ArtifactFormat.MERGED)
    assert "- the training examples include 1,080 changed copies of records\n" in card


def test_values_of_environment_variables_are_not_shown(classifier_page):
    assert "hf_secret" not in classifier_page
    assert "HF_TOKEN" in classifier_page


def test_a_run_without_test_split_log_or_attempts_has_a_report(report_inputs):
    inputs = report_inputs(tuned=False, with_log=False)
    bare = inputs.config.model_copy(update={"attempts": ()})
    text = " ".join(Page(render_report(dataclasses.replace(inputs, config=bare))).text.split())
    assert "Not measured" in text
    assert "stored no log" in text
    assert "Attempt 1" not in text


def test_restarts_are_marked_in_the_curves(classifier_page):
    drawings = re.findall(r"<svg.*?</svg>", classifier_page, re.DOTALL)
    assert len(drawings) == 5
    assert all("attempt 3" in drawing and "attempt 2" not in drawing for drawing in drawings[:4])


def test_a_chosen_learning_rate_is_shown_with_the_losses_of_its_test(report_inputs):
    rates = rates_to_test(2e-5, 40)
    losses = [2.0 - 1 / (1 + 1e-4 / rate) for rate in rates]
    chosen = choose(rates, losses, default=2e-5)
    page = Page(render_report(dataclasses.replace(report_inputs(), rate=chosen)))
    assert ("svg", "aria-label", "Loss of the learning rate range test") in page.attributes
    assert f"Learning rate {chosen.learning_rate:g}: the rate at which the smoothed loss" in page.text
    assert f" {chosen.learning_rate:g} " in page.text, "the mark of the chart"
    assert " 1e-5 " in page.text, "a logarithmic axis"
    untested = ChosenRate(learning_rate=2e-5, default_reason=EVIL)
    page = Page(render_report(dataclasses.replace(report_inputs(), rate=untested)))
    assert "The learning rate is 2e-05, the default of the method, because <script>" in page.text
    assert "script" not in page.tags
    assert "range test" not in page.text


def test_phases_of_gradual_unfreezing_are_listed_and_marked_in_the_loss_curve(report_inputs):
    inputs = report_inputs()
    phases = [{"first_step": 1, "trained_parameters": 10}, {"first_step": 81, "trained_parameters": 22_713_216}]
    log = inputs.training.model_copy(update={"phases": tuple(map(TrainingPhase.model_validate, phases))})
    page, plain = (render_report(dataclasses.replace(inputs, training=each)) for each in (log, inputs.training))
    assert "2 81 22,713,216" in " ".join(Page(page).text.split())
    assert "Gradual unfreezing" not in plain
    drawings = [re.findall(r"<svg.*?</svg>", text, re.DOTALL) for text in (page, plain)]
    different = [now != before for now, before in zip(*drawings, strict=True)]
    assert different == [True] + [False] * (len(different) - 1)


def test_the_same_run_gives_the_same_page(report_inputs):
    assert render_report(report_inputs()) == render_report(report_inputs())


def test_many_classes_keep_record_page_and_card_small_without_losing_shown_classes(report_inputs):
    inputs = report_inputs(labels=tuple(f"{index:05d} " + "long name " * 20 for index in range(2000)))
    full = inputs.record
    assert full.baseline is not None
    assert full.tuned is not None
    baseline, tuned = limit_classes(full.baseline, full.tuned)
    short = dataclasses.replace(inputs, record=full.model_copy(update={"baseline": baseline, "tuned": tuned}))
    page = render_report(short)
    assert page == render_report(inputs)
    assert model_card(short.record, *rest_of(short)) == model_card(full, *rest_of(inputs))
    assert len(short.record.model_dump_json().encode()) < 200_000
    assert len(page.encode()) < MAX_BYTES
    assert "The 30 classes with the lowest F1 of 2,000." in page
    assert "The 1,970 classes with the fewest mistakes are not shown" in page


def rest_of(inputs):
    return inputs.config, inputs.data, ArtifactFormat.MERGED


def test_classes_with_few_test_examples_are_listed(report_inputs):
    labels = ("often", "rarely", "never")
    inputs = report_inputs(labels=labels)
    figures = classification_metrics([0] * 40 + [1] * 3, [0] * 40 + [1] * 3, labels)
    tuned = inputs.record.tuned.model_copy(update={"classification": figures})
    record = inputs.record.model_copy(update={"tuned": tuned})
    text = " ".join(Page(render_report(dataclasses.replace(inputs, record=record))).text.split())
    assert "whose metrics are imprecise: rarely." in text
    assert "not measured: never." in text


def promotion(**fields: object) -> PromotionDecision:
    known = {
        "outcome": PromotionOutcome.REFUSED,
        "time": "2026-03-01T12:00:00Z",
        "metric": Metric.ACCURACY,
        "checks": (
            Check(holds=True, text="Accuracy 0.9 must be at least 0.8"),
            Check(holds=False, text=f"the promoted model cannot be compared: {EVIL}"),
        ),
        "uri": "s3://corp/models/topics/runs/r0001-7b0e/model",
    }
    return PromotionDecision.model_validate(known | fields)


def with_promotion(inputs: ReportInputs, decision: PromotionDecision, **update: object) -> ReportInputs:
    record = inputs.record.model_copy(update={"promotion": decision, **update})
    return dataclasses.replace(inputs, record=record)


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        (
            promotion(),
            ["The model was not promoted", "does not hold", EVIL, "Promoted now s3://corp/models/topics/runs"],
        ),
        (
            promotion(outcome="Promoted", checks=(), note="no model was promoted before"),
            ["The model is promoted : no model was promoted before"],
        ),
        (
            promotion(outcome="Conflict", previous="s3://x/old"),
            ["promoted at the same time", "Promoted before s3://x/old"],
        ),
    ],
)
def test_the_decision_on_the_promotion_is_shown_with_every_condition(report_inputs, decision, words):
    text = render_report(with_promotion(report_inputs(), decision))
    assert EVIL not in text
    shown = " ".join(Page(text).text.split())
    assert [word for word in words if word not in shown] == []


def test_the_promoted_model_has_a_column(report_inputs):
    inputs = report_inputs()
    promoted = inputs.record.baseline.model_copy(update={"metrics": {Metric.ACCURACY: 0.123}})
    text = " ".join(Page(render_report(with_promotion(inputs, promotion(), promoted=promoted))).text.split())
    assert "Test split Promoted before Base model Fine-tuned Change Loss –" in text
    assert "Accuracy 12.3 % 3.3 % 87.6 %" in text
    assert "Promoted before" not in " ".join(Page(render_report(inputs)).text.split())


def test_the_message_of_a_decision_begins_with_what_prevented_it():
    assert promotion(note="note").message == (
        f"note. does not hold: the promoted model cannot be compared: {EVIL}. holds: Accuracy 0.9 must be at least 0.8"
    )
