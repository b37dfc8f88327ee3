"""The termination message always fits into Kubernetes' 4 KiB, and keeps what the operator's decisions need."""

import json

import pytest

from factories import make_prepared
from finetune_api.progress import (
    MAX_TERMINATION_BYTES,
    CommittedCheckpoint,
    EvaluateResult,
    ExportResult,
    Progress,
    PromotionResult,
    TerminationMessage,
    TrainResult,
    is_cut,
    merged_warnings,
)
from finetune_api.trainer_config import Prepared
from finetune_api.v1alpha1 import CandidateName, GgufType, Metric, PromotionOutcome, SimpleBaseline

LONG_URI = "s3://bucket/" + "ü" * 500
CHECKPOINT = CommittedCheckpoint(step=40, uri=f"{LONG_URI}/manifest", time="2026-03-01T12:00:00Z", save_seconds=1.5)


def prepared(**fields: object) -> Prepared:
    return make_prepared(dataset_uri=LONG_URI, dataset_digest="d" * 64, model_digest="m" * 64, **fields)


def progress(**fields: object) -> Progress:
    return Progress(stage="train", step=41, total_steps=100, last_checkpoint=CHECKPOINT).model_copy(update=fields)


TOO_MUCH = {
    "many labels": {"prepared": prepared(labels=tuple(f"intent number {index}" for index in range(10_000)))},
    "a long revision": {"prepared": prepared(requested_revision="v" * 1000, notes=("n" * 5000,))},
    "long labels": {"prepared": prepared(labels=("a" * 4096, "b" * 4096))},
    "long notes": {"prepared": prepared(notes=("n" * 5000, "short", "x" * 5000))},
    "a long error": {"exit_code": 65, "error": "\x01 bad line\n" * 9000},
    "a long advice": {"exit_code": 65, "error": "e" * 300, "advice": "write it again; " * 900},
    "long log lines": {"exit_code": 70, "last_lines": ("😀" * 4000,) * 20},
    "long warnings": {"exit_code": 70, "progress": progress(warnings=("w" * 900,) * 16)},
    "a long activity": {"exit_code": 70, "progress": progress(activity="reading " + "f" * 9000)},
    "a long note on checkpoints": {"progress": progress(checkpoint_late="late " * 2000, resumed_from="r" * 9000)},
    "many phases": {"progress": progress(phase_seconds={f"phase {index}": 1.0 for index in range(900)})},
    "long addresses": {
        "trained": TrainResult(model_uri=LONG_URI, digest="d" * 64, final_step=9),
        "progress": progress(),
    },
    "everything at once": {
        "exit_code": 65,
        "error": "\x01" * 9000,
        "advice": "\x02" * 9000,
        "last_lines": ("l" * 9000,) * 20,
        "progress": progress(warnings=("w" * 9000,) * 16, activity="a" * 9000, evaluation=dict.fromkeys(Metric, 0.1)),
        "prepared": prepared(notes=("n" * 9000,) * 8, labels=("l" * 9000,) * 100),
        "evaluated": EvaluateResult(report_uri="s3://bucket/report", tuned=dict.fromkeys(Metric, 0.1)),
    },
}


@pytest.mark.parametrize("fields", TOO_MUCH.values(), ids=TOO_MUCH)
def test_every_message_fits_and_can_be_read_again(fields):
    message = TerminationMessage(stage="train", exit_code=0).model_copy(update=fields)
    text = message.encode()
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    read = TerminationMessage.decode(text)
    assert read is not None
    assert (read.stage, read.exit_code) == (message.stage, message.exit_code)
    assert bool(read.error) == bool(message.error)
    for name in ("trained", "evaluated"):
        assert getattr(read, name) == getattr(message, name)


PROMOTION = PromotionResult(outcome="Refused", message="m" * 1024, uri=LONG_URI, time="2026-03-01T12:00:00Z")
FIGURES = dict.fromkeys(Metric, 0.123456789012345678)
SETS = {str(number) * 32: FIGURES for number in range(4)}


@pytest.mark.parametrize("outcome", PromotionOutcome)
def test_the_outcome_and_the_figures_of_a_promotion_fit_into_every_message(outcome):
    """With the longest addresses that `spec.output.uri` allows."""
    uri = "s3://bucket/" + "u" * 1012
    promotion = PROMOTION.model_copy(update={"outcome": outcome, "uri": f"{uri}/runs/r0001-1", "previous": uri})
    evaluated = EvaluateResult(
        report_uri=f"{uri}/runs/r0002-1/report.html",
        model_uri=f"{uri}/runs/r0002-1/model",
        digest="d" * 64,
        **dict.fromkeys(("baseline", "tuned", "promoted"), FIGURES),
        baselines=dict.fromkeys(SimpleBaseline, FIGURES),
        baseline_sets=SETS,
        tuned_sets=SETS,
        promotion=promotion,
    )
    reported = Progress(stage="evaluate", activity="done", phase_seconds={f"phase {n}": 1.5 for n in range(20)})
    message = TerminationMessage(stage="evaluate", exit_code=0, progress=reported, evaluated=evaluated)
    text = message.encode()
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    read = TerminationMessage.decode(text)
    assert read is not None
    assert read.evaluated is not None
    assert read.evaluated.promotion is not None
    assert (read.evaluated.promotion.outcome, read.evaluated.promotion.time) == (outcome, promotion.time)
    assert read.evaluated.promotion.message.startswith("mmm")
    without = {"promotion": None, "baseline_sets": {}, "tuned_sets": {}}
    assert read.evaluated.model_copy(update=without) == evaluated.model_copy(update=without)


def test_the_figures_of_the_most_regression_sets_fit_into_a_usual_message():
    evaluated = EvaluateResult(
        report_uri="s3://bucket/out/runs/r0002-1/report.html",
        model_uri="s3://bucket/out/runs/r0002-1/model",
        digest="d" * 64,
        **dict.fromkeys(("baseline", "tuned"), FIGURES),
        baseline_sets=SETS,
        tuned_sets=SETS,
    )
    read = TerminationMessage.decode(TerminationMessage(stage="evaluate", exit_code=0, evaluated=evaluated).encode())
    assert read is not None
    assert read.evaluated == evaluated


EXPORTS = {
    name: ExportResult(bytes=10**12, examples_per_second=0.123, metrics=FIGURES)
    for name in (CandidateName.INT8, CandidateName.COMPRESSED_TENSORS, *map(CandidateName.of_gguf, GgufType))
}


def test_sizes_and_speeds_of_all_exports_fit_into_a_usual_message_without_their_metrics_at_the_most():
    usual = EvaluateResult(report_uri="s3://bucket/report", tuned=FIGURES, exports=EXPORTS)
    read = TerminationMessage.decode(TerminationMessage(stage="evaluate", exit_code=0, evaluated=usual).encode())
    assert read is not None
    assert read.evaluated == usual
    long = usual.model_copy(update={"report_uri": f"s3://bucket/{'u' * 3000}"})
    text = TerminationMessage(stage="evaluate", exit_code=0, evaluated=long).encode()
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    read = TerminationMessage.decode(text)
    assert read is not None
    assert read.evaluated is not None
    assert {name: (one.bytes, one.metrics) for name, one in read.evaluated.exports.items()} == {
        name: (10**12, {}) for name in EXPORTS
    }
    assert read.evaluated.tuned == FIGURES


def test_exports_that_only_a_newer_trainer_has_are_ignored():
    written = {"report_uri": "r", "exports": {"ggufQ2_K": {"bytes": 1}, "int8": {"bytes": 2}}}
    assert EvaluateResult.model_validate(written).exports == {CandidateName.INT8: ExportResult(bytes=2)}


def test_a_promotion_keeps_its_message_and_addresses_in_a_usual_message():
    promotion = PROMOTION.model_copy(update={"uri": "s3://bucket/out/runs/r0001-1/model"})
    evaluated = EvaluateResult(report_uri="s3://bucket/report", tuned=FIGURES, promotion=promotion)
    read = TerminationMessage.decode(TerminationMessage(stage="evaluate", exit_code=0, evaluated=evaluated).encode())
    assert read is not None
    assert read.evaluated == evaluated


@pytest.mark.parametrize("name", [name for name, fields in TOO_MUCH.items() if "progress" in fields])
def test_a_shortened_message_keeps_step_and_checkpoint(name):
    """The operator uses the checkpoint to decide whether an attempt made progress."""
    read = TerminationMessage.decode(
        TerminationMessage(stage="train", exit_code=0).model_copy(update=TOO_MUCH[name]).encode()
    )
    assert read is not None
    assert read.progress is not None
    assert (read.progress.step, read.progress.last_checkpoint) == (41, CHECKPOINT)


@pytest.mark.parametrize("name", [name for name, fields in TOO_MUCH.items() if "prepared" in fields])
def test_a_shortened_message_keeps_all_results_of_prepare_except_labels_and_notes(name):
    message = TerminationMessage(stage="prepare", exit_code=0).model_copy(update=TOO_MUCH[name])
    read = TerminationMessage.decode(message.encode())
    assert read is not None
    assert read.prepared == message.prepared.model_copy(update={"labels": (), "notes": read.prepared.notes})


def test_labels_are_only_in_storage_even_if_they_would_fit():
    text = TerminationMessage(stage="prepare", exit_code=0, prepared=prepared(labels=("a", "b"))).encode()
    assert "labels" not in json.loads(text)["prepared"]


def test_a_long_error_keeps_its_beginning_and_its_end():
    message = TerminationMessage(stage="prepare", exit_code=65, error=f"first {'x' * 9000} last", advice="do this")
    read = TerminationMessage.decode(message.encode())
    assert read is not None
    assert read.error.startswith("first ")
    assert read.error.endswith(" last")
    assert read.advice == "do this"


@pytest.mark.parametrize(
    ("kept", "new", "merged"),
    [
        ((), (), ()),
        (("a", "b"), ("b", "c"), ("a", "b", "c")),
        ((), ("x" * 2000,), ("x" * 1024,)),
        (("x" * 1024,), ("x" * 2000,), ("x" * 1024,)),
        (tuple("abcdefghijklmnop"), ("q",), tuple("bcdefghijklmnopq")),
    ],
    ids=["none", "each once", "cut", "once although cut", "the last sixteen"],
)
def test_warnings_are_limited_in_number_and_length(kept, new, merged):
    assert merged_warnings(kept, new) == merged


def usual_evaluation(**fields: object) -> TerminationMessage:
    evaluated = EvaluateResult(
        report_uri="s3://bucket/runs/topics/runs/r0001-6e5cedc9/report.html",
        model_uri="s3://bucket/runs/topics/runs/r0001-6e5cedc9/model",
        digest="d" * 64,
        **dict.fromkeys(("baseline", "tuned", "promoted"), FIGURES),
        baselines=dict.fromkeys(SimpleBaseline, FIGURES),
        promotion=PROMOTION.model_copy(update={"uri": ""}),
    )
    return TerminationMessage(
        stage="evaluate", exit_code=0, evaluated=evaluated, progress=progress(), last_lines=("a line", "another")
    ).model_copy(update=fields)


CUT = {
    "train": TerminationMessage(
        stage="train",
        exit_code=0,
        trained=TrainResult(model_uri="s3://bucket/model", digest="d" * 64, final_step=1234),
        progress=progress(loss=0.123456, tokens=123456),
        last_lines=("a line", "another"),
    ),
    "prepare": TerminationMessage(stage="prepare", exit_code=0, prepared=prepared(notes=("a note",))),
    "evaluate": usual_evaluation(),
    "failure": TerminationMessage(stage="train", exit_code=65, error="bad data", advice="x", last_lines=("y",)),
}


def is_part(part: object, whole: object) -> bool:
    """Whether `part` has only values of `whole`."""
    if isinstance(part, dict):
        assert isinstance(whole, dict)
        return all(is_part(value, whole[key]) for key, value in part.items())
    return part == whole


@pytest.mark.parametrize("message", CUT.values(), ids=CUT)
def test_a_message_that_the_kubelet_cut_has_no_wrong_value(message):
    """At whatever place: half a number or half an address would be wrong."""
    text = message.encode()
    whole = json.loads(text)
    assert not is_cut(text)
    for length in range(1, len(text)):
        assert is_cut(text[:length])
        read = TerminationMessage.decode(text[:length])
        assert read is None or is_part(read.model_dump(mode="json", by_alias=True, exclude_defaults=True), whole)
    assert read is not None
    assert read.stage == message.stage


@pytest.mark.parametrize("name", ["train", "prepare", "evaluate"])
def test_the_result_of_a_pod_with_six_containers_can_be_read(name):
    """The kubelet gives each of them a sixth of 12 KiB."""
    message = CUT[name].model_copy(update={"last_lines": ("l" * 500,) * 8})
    read = TerminationMessage.decode(message.encode()[: 12 * 1024 // 6])
    assert read is not None
    assert (read.trained, read.prepared) == (message.trained, message.prepared)
    if message.evaluated is not None:
        assert read.evaluated is not None
        assert (read.evaluated.digest, read.evaluated.tuned) == (message.evaluated.digest, message.evaluated.tuned)


def test_a_list_or_a_promotion_that_was_cut_is_left_out():
    """A shorter list of kept runs, or a promotion without an address, has another meaning."""
    promoted = PROMOTION.model_copy(update={"outcome": PromotionOutcome.PROMOTED, "message": "better"})
    for fields in ({"promotion": promoted}, {"kept_runs": (2, 31, 33, 34)}):
        evaluated = EvaluateResult(report_uri="s3://b/r", tuned=FIGURES, **fields)
        text = TerminationMessage(stage="evaluate", exit_code=0, evaluated=evaluated).encode()
        for length in range(text.index("tuned"), len(text)):
            read = TerminationMessage.decode(text[:length])
            assert read is not None
            assert read.evaluated is None or read.evaluated.model_copy(update={"tuned": {}}) in (
                EvaluateResult(report_uri="s3://b/r"),
                EvaluateResult(report_uri="s3://b/r", **fields),
            )


@pytest.mark.parametrize(
    "text",
    ["", "Killed", "12", '"stage"', "[1", "step 3 {", '{"stage": "train"} a log line', "[" * 4000, '{"a": "\ud83d'],
)
def test_other_text_is_no_message_and_was_not_cut(text):
    assert TerminationMessage.decode(text) is None
    assert not is_cut(text)
