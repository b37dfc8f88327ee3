"""Steps of preparation: what the digest of a dataset depends on, and optional steps in separate files."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import tiny_models
from finetune_api.v1alpha1 import BadRecordAction, Columns, DataFormat, Spec, Task
from finetune_trainer.data import build, pipeline
from finetune_trainer.data import steps as optional_steps
from finetune_trainer.data.build import Inputs, steps_of
from finetune_trainer.data.formats import Example, Formatter
from finetune_trainer.data.info import SourceInfo
from finetune_trainer.data.pipeline import BlockPlan, KeyedRows, Phase, Tally, dataset_digest, optional, process_block
from finetune_trainer.data.prepare import make_formatter
from finetune_trainer.data.problems import BadRecords, Place
from finetune_trainer.data.readers import blocks
from finetune_trainer.data.runs import read_bucket, read_keys, remove_rows, sort_by_step_key, use_other_keys
from finetune_trainer.data.sources import SourceFile
from finetune_trainer.data.splits import row_keys
from rows import classified, jsonl

DATA: dict[str, Any] = {"train": [{"uri": "s3://bucket/a.jsonl"}], "format": "Classification"}
FILE = SourceFile("s3://bucket/a.jsonl", Path("/nowhere/a.jsonl"), "1" * 64, 0)


def spec_of(data: dict[str, Any] | None = None, **blocks: Any) -> Spec:
    return Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": DATA | (data or {}),
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
        | blocks
    )


def inputs_of(spec: Spec, **changes: Any) -> Inputs:
    data_format = changes.pop("data_format", spec.data.format or DataFormat.CLASSIFICATION)
    tokenizer = tiny_models.tiny_tokenizer(tiny_models.CHATML)
    formatter = make_formatter(data_format, spec.data, tokenizer, "s3://bucket/model")
    classifies = data_format is DataFormat.CLASSIFICATION
    task = Task.SEQUENCE_CLASSIFICATION if classifies else Task.CAUSAL_LM
    return replace(Inputs({"train": (FILE,)}, formatter, tokenizer, "t" * 64, task, 64), **changes)


def digest_of(data: dict[str, Any] | None = None, changes: dict[str, Any] | None = None, **blocks: Any) -> str:
    spec = spec_of(data, **blocks)
    inputs = inputs_of(spec, **(changes or {}))
    return dataset_digest(inputs.files, steps_of(spec, inputs))


@pytest.mark.parametrize(
    "data",
    [
        {"format": None},
        {"columns": {}},
        {"columns": {"text": "text", "label": "label"}},
        {"columns": {"prompt": "question"}},
        {"validation": {"fraction": 0.1, "stratify": True}},
        {"test": {"fraction": 0.1}},
        {"onBadRecord": "Fail"},
        {"maxLength": 1024},
        {"train": [{"uri": "s3://elsewhere/b.jsonl"}]},
    ],
)
def test_a_spelled_out_default_or_a_field_without_effect_gives_the_same_data_set(data):
    assert digest_of(data) == digest_of()


@pytest.mark.parametrize(
    ("data", "changes", "blocks"),
    [
        ({"columns": {"text": "body"}}, {}, {}),
        ({"validation": {"fraction": 0.2}}, {}, {}),
        ({"validation": {"fraction": 0.1, "stratify": False}}, {}, {}),
        ({"onBadRecord": "Skip"}, {}, {}),
        ({"format": "Text"}, {}, {}),
        ({}, {"max_length": 65}, {}),
        ({}, {"tokenizer_digest": "u" * 64}, {}),
        ({}, {"files": {"train": (replace(FILE, sha256="2" * 64),)}}, {}),
        ({}, {"files": {"train": (replace(FILE, path=Path("/nowhere/a.json")),)}}, {}),
        ({}, {"files": {"train": (FILE,), "test": (FILE,)}}, {}),
        ({}, {}, {"training": {"learningRate": 1e-3, "seed": 7}}),
    ],
)
def test_a_change_of_the_rows_changes_the_digest(data, changes, blocks):
    assert digest_of(data, changes, **blocks) != digest_of()


def test_a_later_field_of_the_api_does_not_change_the_digest():
    """Nor does a field of a block that a step reads, because steps list what they depend on."""

    class LaterColumns(Columns):
        later: str | None = None

    spec = spec_of()
    later = spec.model_copy(update={"data": spec.data.model_copy(update={"columns": LaterColumns(later="x")})})
    inputs = inputs_of(spec)
    assert dataset_digest(inputs.files, steps_of(later, inputs)) == dataset_digest(inputs.files, steps_of(spec, inputs))


def test_another_version_of_a_step_gives_another_data_set():
    spec = spec_of()
    inputs = inputs_of(spec)
    steps = list(steps_of(spec, inputs))
    assert [step.name for step in steps] == ["format", "encode", "split"]
    before = dataset_digest(inputs.files, steps)
    for index, step in enumerate(steps):
        changed = [*steps[:index], replace(step, version=step.version + 1), *steps[index + 1 :]]
        assert dataset_digest(inputs.files, changed) != before


SHORT = """
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_trainer.data.pipeline import DataStep


@dataclass(frozen=True)
class Parameters:
    fewest: int


def parameters(spec):
    return Parameters(spec.training.epochs) if spec.training.epochs > 1 else None


def apply(parameters, examples, tally):
    for example in examples:
        if len(example.text.split()) < parameters.fewest:
            tally.dropped += 1
        else:
            tally.counts["kept"] += 1
            yield example


STEP = DataStep("short texts", 1, 10, parameters, apply, lambda counts: (f"{counts['kept']} texts are long enough",))
"""
EQUAL = """
from dataclasses import dataclass

import numpy as np

from finetune_trainer.data.pipeline import DataStep, Phase


@dataclass(frozen=True)
class Parameters:
    pass


def apply(_parameters, rows, _tally):
    return np.concatenate([[True], rows.keys[1:] != rows.keys[:-1]])


def parameters(spec):
    return Parameters() if spec.training.epochs > 1 else None


STEP = DataStep("equal rows", 1, 20, parameters, apply, phase=Phase.KEYS)
"""


@pytest.fixture
def two_more_steps(tmp_path, monkeypatch):
    """In separate files, enabled by `training.epochs` above 1."""
    (tmp_path / "short_texts.py").write_text(SHORT)
    (tmp_path / "equal_rows.py").write_text(EQUAL)
    monkeypatch.setattr(optional_steps, "__path__", [*optional_steps.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield
    for name in ("short_texts", "equal_rows"):
        sys.modules.pop(f"{optional_steps.__name__}.{name}", None)


def test_a_step_in_a_separate_file_is_found_and_changes_the_digest_only_if_enabled(request):
    before, with_epochs = digest_of(), {"training": {"learningRate": 1e-3, "epochs": 3}}
    enabled_before = digest_of(**with_epochs)
    request.getfixturevalue("two_more_steps")
    assert digest_of(training={"learningRate": 1e-3, "epochs": 1}) == before
    spec = spec_of(**with_epochs)
    assert [step.name for step in steps_of(spec, inputs_of(spec))] == [
        "format",
        "short texts",
        "encode",
        "equal rows",
        "split",
    ]
    assert digest_of(**with_epochs) != enabled_before
    assert digest_of(**with_epochs) != digest_of(training={"learningRate": 1e-3, "epochs": 4})


def test_an_optional_step_counts_dropped_rows_and_a_block_has_the_rest(two_more_steps, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([*classified(20), {"text": "so", "label": "good"}]))
    spec = spec_of(training={"learningRate": 1e-3, "epochs": 3})
    inputs = inputs_of(spec)
    steps = steps_of(spec, inputs)
    file = SourceFile("file:///a.jsonl", path, "", path.stat().st_size)
    columns = inputs.formatter.columns_of
    plan = BlockPlan(steps.on_examples, columns, BadRecordAction.FAIL, 1, 1, False, tmp_path)
    (block,) = blocks(file, columns)
    result = process_block(plan, block, 0)
    assert (result.records, result.tallies["short texts"].dropped) == (21, 1)
    assert steps.on_examples[1].report(result.tallies["short texts"].counts) == ("20 texts are long enough",)
    assert result.run is not None
    assert read_bucket(result.run, 0).num_rows == 20
    rows = KeyedRows(np.array([1, 1, 2], dtype=np.uint64), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int8))
    kept = steps.on_keys[0].apply(rows, Tally(BadRecords(BadRecordAction.FAIL)))
    assert kept.tolist() == [True, False, True]


def test_a_default_spec_enables_no_optional_steps():
    assert [optional(spec_of(), phase) for phase in Phase] == [[]] * len(Phase)
    assert pipeline.FORMAT_VERSION == 4


def test_the_order_of_the_files_is_part_of_the_digest_only_if_a_step_depends_on_it():
    spec = spec_of()
    steps = list(steps_of(spec, inputs_of(spec)))
    other = replace(FILE, sha256="0" * 64)
    one_way, other_way = {"train": (FILE, other)}, {"train": (other, FILE)}
    assert dataset_digest(one_way, steps) == dataset_digest(other_way, steps)
    steps[-1] = replace(steps[-1], depends_on_file_order=True)
    assert dataset_digest(one_way, steps) != dataset_digest(other_way, steps)


def words_without_the_last(example: Example) -> str:
    return " ".join(example.text.split()[:-1])


@pytest.mark.parametrize("buckets", [1, 3])
@pytest.mark.parametrize("keys_change", [False, True])
def test_a_step_gets_rows_in_the_order_of_its_own_key_and_removed_rows_are_not_read_again(
    tmp_path, buckets, keys_change
):
    """Rows with equal keys are in the order of the file, for any order of the run."""
    texts = [f"text {number % 7} number {number * 31 % 50}" for number in range(50)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"text": text, "label": f"{number % 3}.0"} for number, text in enumerate(texts)]))
    spec = spec_of()
    inputs = inputs_of(spec)
    columns = inputs.formatter.columns_of
    steps = steps_of(spec, inputs).on_examples
    keys = {"same begin": words_without_the_last}
    plan = BlockPlan(steps, columns, BadRecordAction.FAIL, 1, buckets, False, tmp_path, keys)
    (block,) = blocks(SourceFile("file:///a.jsonl", path, "", path.stat().st_size), columns)
    run = process_block(plan, block, 0).run
    assert run is not None
    if keys_change:
        use_other_keys(run, buckets)
    rows = pa.Table.from_batches([read_bucket(run, bucket) for bucket in range(buckets)])
    numbers = np.array(rows["number"])

    found = []
    file = sort_by_step_key(run, "same begin", buckets)
    for bucket in range(buckets):
        batch = read_keys(run, bucket, file)
        assert (np.diff(np.array(batch["key"])) >= 0).all()
        found += list(zip(batch["key"].to_pylist(), numbers[batch["position"].to_numpy()].tolist(), strict=True))
    expected = row_keys([f"text {number % 7} number" for number in range(50)], 1).tolist()
    assert found == sorted(zip(expected, range(1, 51), strict=True))

    odd = np.flatnonzero(numbers % 2 == 1)
    remove_rows(run, odd[:10])
    remove_rows(run, odd[10:])
    for bucket in range(buckets):
        left = [*read_keys(run, bucket, None)["position"].to_pylist()]
        assert (numbers[left] % 2 == 0).all()
        assert read_bucket(run, bucket)["number"].to_pylist() == numbers[left].tolist()
    again = [read_keys(run, bucket, file)["position"].to_pylist() for bucket in range(buckets)]
    assert sum(map(len, again)) == 25
    assert set(odd).isdisjoint(position for positions in again for position in positions)


@pytest.mark.parametrize(
    ("data_format", "record", "content"),
    [
        ("Classification", {"text": "<s>a b</s>", "label": 1}, ("a b",)),
        ("Text", {"text": "a b \n"}, ("a b \n",)),
        ("Text", {"text": "<s>a b</s> \n"}, ("a b",)),
        ("Instruction", {"prompt": "<s>a", "input": "more", "completion": "b</s>"}, ("a\n\nmore", "b")),
    ],
)
def test_steps_compare_texts_without_begin_and_end_tokens(data_format, record, content):
    formatter = Formatter(DataFormat(data_format), Columns(), bos="<s>", eos="</s>")
    assert formatter(record, Place("file:///a.jsonl", 1)).content == content


def test_a_job_without_optional_steps_keeps_its_earlier_digest():
    before = "0f2f31d78c431c728bfcbcc4c63e01442f89283ca2e62e3f6bfbb3410784f686"
    assert digest_of() == digest_of({"cleaning": {"exactDuplicates": False}}) == before
    assert digest_of({"cleaning": {"exactDuplicates": True}}) != before


def rows_of(spec: Spec, files: dict[str, list[str]], folder: Path) -> tuple[build._Rows, build.Steps]:
    """The rows of one file per split."""
    inputs = inputs_of(spec)
    steps = steps_of(spec, inputs)
    columns = inputs.formatter.columns_of
    keys = {step.name: step.key for step in steps.on_keys if step.key is not None}
    features = {step.name: step.features for step in steps.on_features if step.features is not None}
    plan = BlockPlan(steps.on_examples, columns, BadRecordAction.FAIL, 1, 1, False, folder, keys, features)
    bad = BadRecords(BadRecordAction.FAIL)
    rows = build._Rows(bad, {step.name: Tally(bad) for step in steps}, 1)
    for number, (split, texts) in enumerate(files.items()):
        path = folder / f"{split}.jsonl"
        path.write_bytes(jsonl([{"text": text, "label": str(place % 2)} for place, text in enumerate(texts)]))
        file = SourceFile(f"file:///{split}.jsonl", path, "", path.stat().st_size, split)
        rows.sources.append(SourceInfo(split=split, uri=file.uri, sha256="", rows=0))
        (block,) = blocks(file, columns)
        rows.add(process_block(plan, block, number), number)
    rows.name_labels()
    rows.number_labels(("0", "1"), of_tokens=False)
    return rows, steps


def shown(tally: Tally) -> list[tuple[str, str]]:
    return [(each.place, each.text) for each in tally.examples]


def test_of_a_removed_record_only_the_place_is_shown(tmp_path):
    """The text of tokens may be in lower case and have other spaces, so that personal data is not found in it."""
    texts = ["a b", "MAIL JO @ EXAMPLE . COM", "MAIL JO @ EXAMPLE . COM", "a b"]
    rows, steps = rows_of(spec_of({"cleaning": {"exactDuplicates": True}}), {"train": texts}, tmp_path)
    rows.apply_to_keys(steps.on_keys)
    places = [("file:///train.jsonl line 3", ""), ("file:///train.jsonl line 4", "")]
    assert shown(rows.tallies["exact duplicates"]) == places


def test_removed_training_records_are_counted_and_many_of_them_give_a_remark(tmp_path):
    texts = [f"text {number}" for number in range(20)]
    files = {"train": texts, "test": [*texts[3:6], "other"]}
    rows, steps = rows_of(spec_of({"cleaning": {"testOverlap": True}}), files, tmp_path)
    rows.apply_to_features(steps.on_features)
    (step,), tally = steps.on_features, rows.tallies["test overlap"]
    assert (tally.dropped, shown(tally)) == (3, [(f"file:///train.jsonl line {line}", "") for line in (4, 5, 6)])
    (remark,) = step.report(tally.counts)
    assert "removed 15.0% of the training records (3 of 20)" in remark


def test_equal_values_in_groups_of_all_file_types_change_the_version_of_the_split():
    grouped = {name: {"fraction": 0.1, "groupBy": "user"} for name in ("validation", "test")}
    for data, version in (({}, 1), (grouped, 2)):
        spec = spec_of(data)
        assert steps_of(spec, inputs_of(spec)).split.version == version
