"""The page of `finetune status`."""

from datetime import UTC, datetime
from typing import Any

import pytest

from factories import make_job, merged
from finetune_cli.cluster.lenient_job import is_settled, lenient_job
from finetune_cli.display.conditions import phase_since, wrong_conditions
from finetune_cli.display.page import Page
from finetune_cli.exit_status import CommandError
from statuses import FAILED, RESTARTING, START, SUCCEEDED, SUSPENDED, TRAINING, attempt

NOW = datetime(2026, 1, 1, 12, 1, 0, tzinfo=UTC)


def condition(kind: str, status: str, reason: str, message: str = "", at: str = START) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


def turned(phase: str, kind: str, status: str, *, at: str) -> dict[str, Any]:
    return {"phase": phase, "conditions": [condition(kind, status, "InvalidSpec", at=at)]}


def event(reason: str, message: str, at: str, kind: str = "Normal") -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": at, "type": kind}


WAITING = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu"
BUSY = merged(
    TRAINING,
    {
        "observedGeneration": 1,
        "run": {
            "attempt": 2,
            "restarts": 1,
            "progress": {"tokensPerSecond": 2140.4, "etaSeconds": 24},
            "resolved": {
                "task": "SequenceClassification",
                "format": "Classification",
                "dtype": "Float32",
                "zeroStage": 2,
                "learningRate": 0.00021,
                "microBatchSize": 8,
                "gradientAccumulationSteps": 2,
                "batching": "Padded",
            },
            "attempts": [
                attempt("prepare", endTime="2026-01-01T12:00:06Z", outcome="Succeeded"),
                attempt(
                    "train", endTime="2026-01-01T12:00:40Z", outcome="Retryable", reason="OutOfMemory", lastStep=181
                ),
                attempt("train", 2, resumedFromStep=120) | {"startTime": "2026-01-01T12:00:41Z"},
            ],
            "failure": {
                "class": "OutOfMemory",
                "stage": "train",
                "attempt": 1,
                "rank": 1,
                "pod": "topics-r1-train-a1-1-abcde",
                "node": "node-b",
                "exitCode": 80,
                "message": "out of memory at step 181\nlast line",
                "advice": "Lower training.microBatchSize or data.maxLength, raise deepspeed.zeroStage or the limit.",
            },
        },
        "conditions": [condition("Accepted", "True", "Valid"), condition("Ready", "True", "Training", "attempt 2")],
    },
)
EVENTS = [
    event("Training", "attempt 2", "2026-01-01T12:00:41Z"),
    event(
        "AttemptFailed", "train attempt 1 failed: OutOfMemory\nLower it. " + "x" * 80, "2026-01-01T12:00:40Z", "Warning"
    ),
]
ALL = {
    "training": TRAINING,
    "busy": BUSY,
    "restarting": RESTARTING,
    "succeeded": SUCCEEDED,
    "failed": FAILED,
    "suspended": SUSPENDED,
    "unborn": {},
}


def page(status: dict[str, Any], events: Any = (), **options: Any) -> list[str]:
    spec = options.pop("spec", {})
    job = lenient_job({**make_job("topics", **spec), "status": status})
    return Page(job=job, where="namespace ml, context test", events=events, now=NOW, **options).lines()


def test_the_page_of_a_job_with_failures() -> None:
    lines = page(BUSY, EVENTS)
    assert lines[0] == "topics: Training for 19 s"
    assert lines[1].startswith("namespace ml, context test, run 1, started 20")
    assert lines[2:] == [
        "",
        "progress      [########################................]  60 %, step 180 of 296",
        "              epoch 4.9, loss 0.412, 2,140 tokens/s, 24 s left",
        "checkpoint    step 180, 10 s ago: s3://b/c.json",
        "restarts      1 of 3 since the last new checkpoint, disruptions 0 of 50",
        "resolved      SequenceClassification, Classification data, Float32, ZeRO 2,",
        "              learning rate 0.00021, micro-batch 8 x 2 accumulated, batching",
        "              Padded",
        "",
        "stage    attempt  outcome    took  from step  to   reason",
        "prepare  1        Succeeded  6 s   -          -",
        "train    1        Retryable  40 s  -          181  OutOfMemory",
        "train    2        running    19 s  120        -",
        "",
        "last failure  OutOfMemory (exit status 80) in train attempt 1",
        "where         rank 1, pod topics-r1-train-a1-1-abcde, node node-b",
        "message       out of memory at step 181",
        "              last line",
        "advice        Lower training.microBatchSize or data.maxLength, raise",
        "              deepspeed.zeroStage or the limit.",
        "",
        "events        20 s ago  ! AttemptFailed: train attempt 1 failed: OutOfMemory ...",
        "              19 s ago  Training: attempt 2",
    ]


@pytest.mark.parametrize("status", ALL.values(), ids=ALL.keys())
@pytest.mark.parametrize("width", [80, 120])
def test_a_page_fits_its_width_and_a_screen(status: dict[str, Any], width: int) -> None:
    lines = page(status, EVENTS, width=width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= 34
    assert "\n".join(lines).isascii()


def test_regression_sets_are_on_the_page_before_and_after_training() -> None:
    sets = {"baseline": {"general": {"Loss": 3.613}}, "tuned": {"general": {"Loss": 3.84}, "chats": {"Loss": 1.25}}}
    candidates = {name: {"metrics": {}, "regressionSets": found} for name, found in sets.items()}
    lines = page(merged(SUCCEEDED, {"run": {"candidates": candidates}}))
    at = lines.index("regression    general: loss 3.613 -> 3.84")
    assert lines[at + 1] == "              chats: loss 1.25"


def test_notes_of_the_prepare_stage_are_on_the_page() -> None:
    notes = ["12 tokens added to the vocabulary: 1.88 -> 1.77 tokens per word", "ZeRO stage 2"]
    lines = page(merged(BUSY, {"run": {"notes": notes}}))
    at = lines.index("notes         12 tokens added to the vocabulary: 1.88 -> 1.77 tokens per word")
    assert lines[at + 1] == "              ZeRO stage 2"


def test_what_the_rules_of_the_data_did_is_a_table_on_the_page() -> None:
    rules = [{"rule": "exactDuplicates", "dropped": 1204}, {"rule": "redact", "changed": 7}, {"rule": "augmentation"}]
    lines = page(merged(BUSY, {"run": {"resolved": {"rules": rules}}}))
    at = next(index for index, line in enumerate(lines) if line.startswith("data rule"))
    assert [line.split() for line in lines[at : at + 4]] == [
        ["data", "rule", "changed", "dropped", "added"],
        ["exactDuplicates", "0", "1,204", "0"],
        ["redact", "7", "0", "0"],
        ["augmentation", "0", "0", "0"],
    ]
    assert max(map(len, lines)) <= 80
    assert not any(line.startswith("data rule") for line in page(BUSY)), "without rules there is no table"


def test_warnings_are_on_the_page() -> None:
    warnings = ["checkpoint 00000004-a0001 cannot be used: a blob is missing, " * 2, "no conditions"]
    lines = page(merged(BUSY, {"run": {"warnings": warnings}}))
    at = lines.index("warnings      checkpoint 00000004-a0001 cannot be used: a blob is missing,")
    assert lines[at - 1] == ""
    assert lines[at + 2] == "              no conditions"


def test_results_are_compared_and_addresses_are_not_broken() -> None:
    uri = f"s3://demo/{'long-' * 20}model"
    lines = page(merged(SUCCEEDED, {"run": {"artifact": {"uri": uri}}}))
    assert ["accuracy", "9.5", "%", "87.8", "%", "+78.4", "points"] in [line.split() for line in lines]
    assert f"model         {uri}" in lines
    assert "report        s3://demo/runs/topics/runs/r0001-1f3a9c42/report.html" in lines
    assert "              epoch 8.0, loss 0.031" in lines


def test_a_long_message_shows_its_first_and_last_lines() -> None:
    message = "\n".join(f"line {number}" for number in range(30))
    lines = page(merged(FAILED, {"run": {"failure": {"message": message}}}))
    start = lines.index("message       line 0")
    assert [line.strip() for line in lines[start + 1 : start + 8]] == ["...", *(f"line {n}" for n in range(24, 30))]


def test_an_interrupted_local_run_is_shown_as_such() -> None:
    assert "interrupted: no process runs it; `finetune run JOB.yaml` resumes" in page(TRAINING, is_interrupted=True)
    assert not any("interrupted" in line for line in page(SUCCEEDED, is_interrupted=True))


def test_missing_permission_to_read_events_is_shown() -> None:
    assert page(BUSY, None)[-1] == "events        not permitted"
    assert not any("events" in line for line in page(BUSY, []))


@pytest.mark.parametrize(
    ("status", "since"),
    [
        ({}, None),
        (
            {
                "phase": "Pending",
                "conditions": [condition("Ready", "False", "WaitingForPods", at="2026-01-01T12:00:10Z")],
            },
            10,
        ),
        ({"phase": "Invalid", "conditions": [condition("Accepted", "False", "InvalidSpec")]}, 0),
        (BUSY, 41),
        (merged(BUSY, {"phase": "Restarting", "run": {"attempts": BUSY["run"]["attempts"][:2]}}), 40),
        (merged(SUCCEEDED, {"run": {"completionTime": "2026-01-01T12:00:50Z"}}), 50),
        (
            {**SUSPENDED, "conditions": [condition("Suspended", "True", "Suspended", at="2026-01-01T12:00:30Z")]},
            30,
        ),
        (SUSPENDED, None),
    ],
)
def test_a_phase_started_at_the_transition_that_caused_it(status: dict[str, Any], since: int | None) -> None:
    expected = None if since is None else f"2026-01-01T12:00:{since:02d}Z"
    assert phase_since(lenient_job({**make_job(), "status": status}).status) == expected


@pytest.mark.parametrize(
    ("conditions", "spec", "phase", "wrong"),
    [
        ([condition("Ready", "True", "Training")], {}, "Training", []),
        (
            [condition("Ready", "False", "WaitingForPods", WAITING)],
            {},
            "Pending",
            [("not Ready", f"WaitingForPods: {WAITING}")],
        ),
        (
            [
                condition(kind, value, "RestartsExhausted", "too often: boom")
                for kind, value in (("Ready", "False"), ("Failed", "True"), ("Stalled", "True"))
            ],
            {},
            "Failed",
            [("not Ready, Failed, Stalled", "RestartsExhausted: too often")],
        ),
        (
            [
                condition("Suspended", "True", "Suspended", "set it"),
                condition("Ready", "False", "Suspended", "set it"),
            ],
            {"suspend": True},
            "Suspended",
            [],
        ),
        (
            [condition("Suspended", "True", "Suspended", "set it")],
            {},
            "Suspended",
            [("Suspended", "Suspended: set it")],
        ),
        (
            [condition("Accepted", "False", "InvalidSpec", "spec.x: no"), condition("Ready", "False", "InvalidSpec")],
            {},
            "Invalid",
            [("not Accepted", "InvalidSpec: spec.x: no")],
        ),
    ],
    ids=["fine", "waiting", "failed", "suspended", "suspended though not wanted", "invalid"],
)
def test_only_conditions_that_indicate_a_problem_are_shown(
    conditions: list[dict[str, Any]], spec: dict[str, Any], phase: str, wrong: list[tuple[str, str]]
) -> None:
    status = {"phase": phase, "observedGeneration": 1, "conditions": conditions}
    status["run"] = {"number": 1, "failure": {"class": "X", "stage": "train", "message": "boom"}}
    assert list(wrong_conditions(lenient_job({**make_job(**spec), "status": status}))) == wrong


def test_a_change_that_the_operator_has_not_observed_is_shown() -> None:
    job = lenient_job({**make_job(), "status": {**SUCCEEDED, "observedGeneration": 0}})
    assert [names for names, _ in wrong_conditions(job)] == ["not observed"]
    assert not is_settled(job)
    assert is_settled(lenient_job({**make_job(), "status": {**SUCCEEDED, "observedGeneration": 1}}))


def test_an_invalid_object_can_be_shown_and_an_unknown_status_is_an_error() -> None:
    assert page({"phase": "Invalid"}, spec={"model": {"uri": "file:///x"}, "novel": 1})[0] == "topics: Invalid"
    with pytest.raises(CommandError, match=r"job cannot be shown \(phase: .*newer than this command"):
        lenient_job({**make_job(), "status": {"phase": "Dreaming"}})


def test_earlier_runs_and_the_reason_of_a_plan_are_shown() -> None:
    past = {
        "number": 1,
        "result": "Failed",
        "reason": "RestartsExhausted",
        "step": 120,
        "candidates": {"tuned": {"metrics": {"Accuracy": 0.5}}},
        "artifact": {"uri": "s3://demo/model", "digest": "d"},
    }
    changes = ["spec.training.learningRate: 0.0002 -> 0.001", "spec.training.epochs: default -> 5"]
    attempts = [attempt("train", plan={"nodes": 1, "reason": "could start 1 of 2 workers"})]
    lines = page(merged(SUCCEEDED, {"history": [past], "run": {"attempts": attempts, "number": 2, "changes": changes}}))
    start = next(index for index, line in enumerate(lines) if line.startswith("earlier run"))
    assert lines[start + 1].split() == [
        "1", "Failed", "(RestartsExhausted)", "120", "accuracy", "50.0", "%", "s3://demo/model"
    ]  # fmt: skip
    assert "plan          attempt 1: could start 1 of 2 workers" in lines
    assert lines[start + 2 : start + 4] == [
        "changes       run 2: spec.training.learningRate: 0.0002 -> 0.001",
        "              run 2: spec.training.epochs: default -> 5",
    ]
