"""Only values that status can hold are accepted as progress or as the final message of a pod."""

import json

import pytest

from finetune_api.constants import LAST_APPLIED, Stage
from finetune_api.progress import MAX_PROGRESS_BYTES, Progress, TerminationMessage
from finetune_api.v1alpha1 import Metric
from finetune_api.validation import dropped_fields
from finetune_cli.log_lines import LogSource, parse_line
from finetune_operator.policy import failure
from observations import make_pod, make_stage

HOSTILE = {
    "not JSON": "pages",
    "empty": "",
    "a list": "[]",
    "nested": '{"stage":"train","loss":' + "[" * 30_000 + "]" * 30_000 + "}",
    "nested text": "[" * 4000,
    "NaN": '{"stage":"train","loss":NaN}',
    "infinite": '{"stage":"train","loss":Infinity}',
    "too large a float": '{"stage":"train","loss":1e999}',
    "an endless wait": '{"stage":"train","eta_seconds":1e300}',
    "a huge integer": '{"stage":"train","step":' + "9" * 400 + "}",
    "an integer of 64 bits and more": '{"stage":"train","step":9223372036854775808}',
    "a metric that is NaN": '{"stage":"train","evaluation":{"Loss":NaN}}',
    "no time": '{"stage":"train","first_step_time":"yesterday"}',
    "a time without a zone": '{"stage":"train","first_step_time":"2026-01-01T12:00:00"}',
    "a time that is longer than status has room for": '{"stage":"train",'
    '"first_step_time":"2026-01-01T12:00:00.123456789+00:00"}',
    "no such day": '{"stage":"train","last_checkpoint":'
    '{"step":1,"uri":"s3://b/c","time":"2026-02-31T12:00:00Z","save_seconds":1}}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_values_that_status_cannot_hold_are_neither_progress_nor_a_final_message(text: str) -> None:
    assert Progress.decode(text.encode()) is None
    assert TerminationMessage.decode(f'{{"stage":"train","exit_code":70,"progress":{text or "x"}}}') is None
    assert TerminationMessage.decode(text) is None


def test_a_response_that_is_too_long_is_not_progress() -> None:
    text = Progress(stage="train", activity="a" * MAX_PROGRESS_BYTES).model_dump_json()
    assert Progress.decode(text.encode()) is None


def test_valid_messages_of_a_trainer_are_read() -> None:
    output = Progress(
        stage="train",
        step=7,
        loss=2.5,
        eta_seconds=1e6,
        started_time="2026-01-01T12:00:00.123Z",
        first_step_time="2026-01-01T12:00:00+00:00",
        evaluation={Metric.PERPLEXITY: 1.79e308},
        warnings=("step 2 is damaged",),
    )
    assert Progress.decode(output.model_dump_json().encode()) == output
    message = TerminationMessage(stage="train", exit_code=70, error="x", progress=output)
    assert TerminationMessage.decode(message.encode()) == message


def test_deeply_nested_json_in_a_log_or_annotation_is_text() -> None:
    """The end of a log is used for pods without a termination message."""
    deep = "[" * 4000
    judged = failure.classify_failure(make_stage(ended="Failed", pods=(make_pod(0, 1, raw_message=deep),)))
    assert judged.status.message.endswith(deep[:100])
    source = LogSource(run=1, stage=Stage.TRAIN, attempt=1, index=0)
    assert [entry.text for entry in parse_line(source, deep)] == [deep]
    assert dropped_fields({"metadata": {"annotations": {LAST_APPLIED: json.dumps({"spec": {}})[:-1] + deep}}}) == ()
