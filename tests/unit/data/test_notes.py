"""Notes about a prepared dataset in status, log and report."""

from finetune_api.trainer_config import SplitCounts
from finetune_api.v1alpha1 import DataFormat, Task
from finetune_trainer.data.info import FORMAT_VERSION, DatasetInfo, reasons_text
from finetune_trainer.data.prepare import notes_of


def test_dropped_and_truncated_records_come_before_remarks_and_choices() -> None:
    info = DatasetInfo(
        version=FORMAT_VERSION,
        digest="d",
        format=DataFormat.CHAT,
        task=Task.CAUSAL_LM,
        seed=0,
        max_length=256,
        tokenizer_digest="t",
        largest_token=9,
        counts=SplitCounts(train=90, validation=10),
        lengths={"train": {256: 90}, "validation": {256: 10}},
        dropped={"empty text": 2},
        truncated={"train": 7, "validation": 1},
        tokens={"train": 1000},
        dropped_tokens={"train": 30},
        sources=(),
        shards={},
        remarks=tuple(f"remark {number}" for number in range(9)),
    )
    assert notes_of(info, ("format Chat", "", "ZeRO stage 0"), 512) == (
        "dropped 2 records: empty text 2",
        "truncated 7 of 90 train rows to 256 tokens",
        "truncated 1 of 10 validation rows to 256 tokens",
        "dropped 30 of 1000 tokens (3.0%): beyond maxLength",
        "maxLength 512 lowered to 256, the maximum of the model",
        "remark 0",
        "remark 1",
        "remark 2",
    )


def test_the_most_frequent_reasons_of_a_rule_are_shown() -> None:
    reasons = {code: 1_009 - number for number, code in enumerate(("fr", "de", "es", "it", "pl", "nl", "da", "no"))}
    assert reasons_text(reasons) == "(fr 1,009, de 1,008, es 1,007, it 1,006, pl 1,005, nl 1,004, 2 more)"
    assert reasons_text({"fr": 3}) == "(fr 3)"
    assert reasons_text({}) == ""
