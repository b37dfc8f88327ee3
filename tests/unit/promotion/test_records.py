"""The record of the promoted model: a stack of entries that promotions push and rollbacks pop."""

import pytest

from finetune_trainer.promotion.records import MAX_EARLIER, PromotionRecord
from promoted_models import TIME, StoredModel

OUTPUT = "s3://bucket/out"


def model(run: int) -> StoredModel:
    return StoredModel(OUTPUT, run, {"config.json": str(run).encode()})


def promoted(before: PromotionRecord | None, run: int) -> PromotionRecord:
    return PromotionRecord.after_promotion(before, model(run).entry, model(run).files, token="t")


def rolled_back(before: PromotionRecord) -> PromotionRecord:
    return PromotionRecord.after_rollback(before, (), "t", time="2026-03-02T00:00:00Z", person="ada", reason="worse")


def runs(record: PromotionRecord) -> tuple[int, list[int], list[int]]:
    stack = [] if record.previous is None else [record.previous, *record.earlier]
    return record.run, [entry.run for entry in stack], [entry.run for entry in record.rolled_back]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([1], (1, [], [])),
        ([1, 2, 3], (3, [2, 1], [])),
        ([1, 2, "back"], (1, [], [2])),
        ([1, 2, 3, "back"], (2, [1], [3])),
        ([1, 2, 3, "back", "back"], (1, [], [2, 3])),
        ([1, 2, "back", 3], (3, [1], [2])),
        ([1, 2, "back", 2], (2, [1], [])),
        ([1, 2, "back", 2, "back"], (1, [], [2])),
    ],
    ids=str,
)
def test_a_rollback_returns_to_the_entry_before_the_promotion(steps, expected):
    record = None
    for step in steps:
        record = rolled_back(record) if step == "back" else promoted(record, step)
    assert record is not None
    assert runs(record) == expected
    assert record.number == len(steps)


def test_a_rollback_keeps_the_model_and_states_who_did_it_and_why():
    record = rolled_back(promoted(promoted(None, 1), 2))
    assert (record.model, record.folder, record.job) == (model(1).entry.model, model(1).layout.uri, model(1).entry.job)
    assert (record.person, record.reason, record.time) == ("ada", "worse", "2026-03-02T00:00:00Z")
    assert record.rolled_back[0].time == TIME


def test_the_number_of_earlier_entries_is_limited():
    record = None
    for run in range(1, 30):
        record = promoted(record, run)
    assert runs(record) == (29, list(range(28, 27 - MAX_EARLIER, -1)), [])
    for _ in range(MAX_EARLIER + 1):
        record = rolled_back(record)
    assert record.previous is None
    assert len(record.rolled_back) == MAX_EARLIER
