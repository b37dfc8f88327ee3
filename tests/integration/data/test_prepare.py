"""The prepare stage against a real object store, with tiny models and real files."""

import json
import logging
import multiprocessing
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import tiny_models
from finetune_api.trainer_config import Prepared, StorageSettings
from finetune_api.v1alpha1 import Batching, DataFormat, Dtype, Offload, Task
from finetune_trainer.data import build
from finetune_trainer.data.chat import TEMPLATE_DATE
from finetune_trainer.data.info import DATASET_FILE, FORMAT_VERSION, read_dataset_info
from finetune_trainer.data.shards import ShardWriter, TokenDataset
from finetune_trainer.errors import AccessDeniedError, BadConfigError, BadDataError, ModelUnusableError
from finetune_trainer.model.gpu_estimate import CONTEXT_BYTES
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.store import ObjectStore
from finetune_trainer.tracking import TRACKERS
from prepare_fixture import PrepareFixture
from rows import chats, classified, jsonl


def sources(*uris: str) -> list[dict[str, str]]:
    return [{"uri": uri} for uri in uris]


def decoded_rows(dataset: TokenDataset, tokenizer) -> list[tuple[str, Any]]:
    rows = [dataset[index] for index in range(len(dataset))]
    return [(tokenizer.decode(row["input_ids"]), row["labels"]) for row in rows]


def test_a_classification_job_gets_stratified_splits_and_all_settings_chosen(place, bert, caplog):
    uri = place.put("train.jsonl", jsonl(classified()))
    with caplog.at_level(logging.INFO, "finetune"):
        prepared = place.prepare(bert, {"train": sources(uri)})
    assert prepared.format is DataFormat.CLASSIFICATION
    assert prepared.task is Task.SEQUENCE_CLASSIFICATION
    assert prepared.labels == ("bad", "good", "mixed")
    assert prepared.counts.model_dump() == {"train": 48, "validation": 6, "test": 6}
    assert (prepared.dtype, prepared.zero_stage, prepared.reused) == (Dtype.FLOAT32, 2, False)
    assert prepared.parameters > 10_000
    assert prepared.memory_estimate_bytes > 640 * 2**20
    assert prepared.dataset_uri == f"{place.uri}/out/datasets/{prepared.dataset_digest}"
    assert len(prepared.model_digest) == 64
    assert "format Classification, by the columns of the first record" in prepared.notes
    tokens = sum(
        length * count
        for length, count in read_dataset_info(place.store, prepared.dataset_uri).lengths["train"].items()
    )
    output = caplog.messages
    assert any(f"{prepared.parameters:,} parameters, SequenceClassification, Float32" in line for line in output)
    assert "read 1 file: 60 records" in output
    assert f"train split: 48 rows, {tokens:,} tokens" in output
    assert set(prepared.notes) <= set(output)
    assert output[-1] == f"dataset written to {prepared.dataset_uri}"
    assert {"check", "model", "fetch", "read", "split", "tokenize"} <= set(place.report.progress.phase_seconds)

    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert info.label_counts["test"] == {"bad": 2, "good": 2, "mixed": 2}
    assert [(source.uri, source.rows) for source in info.sources] == [(uri, 60)]
    assert sum(info.lengths["train"].values()) == 48
    (shard,) = info.shards["train"]
    assert shard.sha256[:16] in shard.name

    dataset = place.open(prepared)
    tokenizer = load_tokenizer(bert)
    assert len(dataset) == 48
    assert dataset.lengths.dtype == np.int32
    expected = {row["text"]: prepared.labels.index(row["label"]) for row in classified()}
    for index, (text, label) in enumerate(decoded_rows(dataset, tokenizer)):
        assert expected[text] == label
        assert dataset.lengths[index] == len(dataset[index]["input_ids"])


def test_the_same_inputs_are_prepared_once(place, bert):
    uri = place.put("train.jsonl", jsonl(classified()))
    first = place.prepare(bert, {"train": sources(uri)})
    again = place.prepare(bert, {"train": sources(uri)})
    assert again.reused
    assert again == first.model_copy(update={"reused": True})
    other_seed = place.prepare(bert, {"train": sources(uri)}, training={"learningRate": 1e-3, "seed": 7})
    assert not other_seed.reused
    assert other_seed.dataset_digest != first.dataset_digest


def test_another_template_date_gives_another_data_set(place, llama, monkeypatch):
    data = {"train": sources(place.put("chat.jsonl", jsonl(chats())))}
    before = place.prepare(llama, data)
    assert read_dataset_info(place.store, before.dataset_uri).template_date == TEMPLATE_DATE
    monkeypatch.setattr(build, "TEMPLATE_DATE", date(2026, 2, 3))
    after = place.prepare(llama, data)
    assert after.dataset_digest != before.dataset_digest
    assert read_dataset_info(place.store, after.dataset_uri).template_date == date(2026, 2, 3)


def prepare_in_process(bucket: str, settings: StorageSettings, folder: Path, *arguments: Any) -> Prepared:
    """Prepare in a separate process with its own connections."""
    here = PrepareFixture(ObjectStore.connect(settings), bucket, settings, folder / str(os.getpid()))
    return here.prepare(*arguments, separate_node=True)


def test_two_runs_that_prepare_the_same_data_concurrently_share_one_data_set(
    place, bucket, storage_settings, tmp_path, bert
):
    data = {"train": sources(place.put("race.jsonl", jsonl(classified(200))))}
    # In processes, like the stage: while transformers loads a model, it patches its classes for all threads.
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        runs = [pool.submit(prepare_in_process, bucket, storage_settings, tmp_path, bert, data) for _ in range(2)]
        first, second = (run.result() for run in runs)
    assert first.dataset_digest == second.dataset_digest
    for prepared in (first, second):
        rows = place.open(prepared)
        assert [len(rows[index]["input_ids"]) > 0 for index in range(len(rows))] == [True] * first.counts.train


def test_the_same_bytes_as_another_file_type_give_another_data_set(place, llama):
    content = jsonl([{"text": f"row {number}"} for number in range(20)])
    data = {"format": "Text", "validation": {"fraction": 0}, "test": {"fraction": 0}}
    first = place.prepare(llama, data | {"train": sources(place.put("corpus.txt", content))})
    second = place.prepare(llama, data | {"train": sources(place.put("corpus.jsonl", content))})
    assert first.dataset_digest != second.dataset_digest
    assert not second.reused


def test_location_and_order_of_files_do_not_matter(place, bert):
    rows = classified()
    one, two = place.put("a.jsonl", jsonl(rows[:20])), place.put("b.jsonl", jsonl(rows[20:]))
    first = place.prepare(bert, {"train": sources(one, two)})
    assert place.prepare(bert, {"train": sources(two, one)}).reused
    assert place.prepare(bert, {"train": sources(f"{place.uri}/data/*.jsonl")}).reused
    moved = place.put("moved/z.jsonl", jsonl(rows[:20])), place.put("moved/y.jsonl", jsonl(rows[20:]))
    assert place.prepare(bert, {"train": sources(*moved)}).dataset_digest == first.dataset_digest
    whole = place.prepare(bert, {"train": sources(place.put("whole.jsonl", jsonl(rows)))})
    names = [
        [
            shard.name
            for shards in read_dataset_info(place.store, prepared.dataset_uri).shards.values()
            for shard in shards
        ]
        for prepared in (first, whole)
    ]
    assert names[0] == names[1]


def test_file_types_can_be_mixed_and_local(place, bert, tmp_path):
    rows = classified()
    place.put("a.jsonl", jsonl(rows[:20]))
    csv = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows[20:40])
    (tmp_path / "b.csv").write_text(csv)
    pq.write_table(pa.Table.from_pylist(rows[40:]), tmp_path / "c.parquet")
    uris = [f"{place.uri}/data/*.jsonl", f"file://{tmp_path}/*.csv", f"file://{tmp_path}/c.parquet"]
    prepared = place.prepare(bert, {"train": sources(*uris)})
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert [source.rows for source in info.sources] == [20, 20, 20]
    assert prepared.counts.train == 48


def test_a_label_has_the_same_name_in_all_file_types(place, bert, tmp_path):
    numbers = place.put("a.jsonl", jsonl([{"text": f"text {i}", "label": i % 2} for i in range(20)]))
    place.put("b.csv", b"text,label\n" + b"".join(b"row %d,%d.0\n" % (i, i % 2) for i in range(20)))
    prepared = place.prepare(bert, {"train": sources(numbers, f"{place.uri}/data/b.csv")})
    assert prepared.labels == ("0", "1")
    remark = "labels were renamed to the form that other file types use: '0.0' is '0', '1.0' is '1'"
    assert remark in prepared.notes
    assert remark in place.report.progress.warnings

    typed = [{"text": f"text {i}", "label": i % 2 == 1} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(typed), tmp_path / "typed.parquet")
    held_out = place.put("held-out.csv", b"text,label\none,True\ntwo,False\n")
    data = {"train": sources(f"file://{tmp_path}/typed.parquet"), "test": {"sources": sources(held_out)}}
    prepared = place.prepare(bert, data)
    assert (prepared.labels, prepared.counts.test) == (("false", "true"), 2)
    assert [place.open(prepared, "test")[index]["labels"] for index in range(2)] == [1, 0]


def test_a_chat_job_trains_only_on_answers(place, llama):
    uri = place.put("chat.jsonl", jsonl(chats()))
    prepared = place.prepare(llama, {"train": sources(uri), "test": {"fraction": 0}})
    assert (prepared.format, prepared.task, prepared.labels) == (DataFormat.CHAT, Task.CAUSAL_LM, ())
    assert prepared.counts.model_dump() == {"train": 36, "validation": 4, "test": 0}
    tokenizer = load_tokenizer(llama)
    for text, labels in decoded_rows(place.open(prepared), tokenizer):
        learnt = tokenizer.decode(labels[labels != -100])
        assert learnt.startswith("it is ")
        assert learnt.endswith("<|im_end|>")
        assert text.endswith(f"<|im_start|>assistant\n{learnt}\n")
    assert len(place.open(prepared, "test")) == 0


def test_a_plain_text_job_splits_long_paragraphs_with_a_note(place, llama):
    uri = place.put("book.txt", b"a good book\n\n" + b"very " * 400 + b"\n\n" + b"the end\n\n" * 10)
    prepared = place.prepare(llama, {"train": sources(uri), "validation": {"fraction": 0}, "test": {"fraction": 0}})
    tokenizer = load_tokenizer(llama)
    tokens = len(tokenizer("very " * 400).input_ids) + 1
    rows = -(-tokens // 256)
    assert (prepared.format, prepared.counts.train) == (DataFormat.TEXT, 11 + rows)
    assert f"split 1 of 12 texts into rows of at most 256 tokens: {11 + rows} rows in total" in prepared.notes
    assert "maxLength 1024 lowered to 256, the maximum of the model" in prepared.notes
    dataset = place.open(prepared)
    texts: dict[int, str] = {}
    for number, (text, labels) in zip(dataset.documents().tolist(), decoded_rows(dataset, tokenizer), strict=True):
        assert (labels != -100).all()
        texts[number] = texts.get(number, "") + text
    expected = ["a good book</s>", "very " * 400 + "</s>", *["the end</s>"] * 10]
    assert sorted(texts.values()) == sorted(expected)
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert (info.divided["train"], info.documents["train"], info.truncated["train"]) == (1, 12, 0)
    assert (info.tokens["train"], info.dropped_tokens["train"]) == (int(dataset.lengths.sum()), 0)


def test_the_rows_of_one_text_are_in_one_split(place, llama):
    texts = [f"{number:03}: " + f"text {number} " * 300 for number in range(12)]
    data = {"train": sources(place.put("long.jsonl", jsonl([{"text": text} for text in texts])))}
    prepared = place.prepare(llama, data | {"validation": {"fraction": 0.25}, "test": {"fraction": 0.25}})
    tokenizer = load_tokenizer(llama)
    found: list[str] = []
    for split in ("train", "validation", "test"):
        dataset = place.open(prepared, split)
        whole: dict[int, str] = {}
        for number, (text, _) in zip(dataset.documents().tolist(), decoded_rows(dataset, tokenizer), strict=True):
            whole[number] = whole.get(number, "") + text
        found += whole.values()
    assert sorted(found) == [f"{text}</s>" for text in texts]


def test_held_out_files_are_used_completely(place, bert):
    rows = classified()
    data = {
        "train": sources(place.put("train.jsonl", jsonl(rows[:40]))),
        "validation": {"sources": sources(place.put("validation.jsonl", jsonl(rows[40:50])))},
        "test": {"sources": sources(place.put("test.jsonl", jsonl(rows[50:])))},
    }
    prepared = place.prepare(bert, data)
    assert prepared.counts.model_dump() == {"train": 40, "validation": 10, "test": 10}


def test_an_unknown_label_in_a_held_out_file_is_reported_with_location_and_nearest_label(place, bert):
    rows = classified()
    uri = place.put("test.jsonl", jsonl([*rows[:3], {"text": "so so", "label": "Mixt"}]))
    data = {"train": sources(place.put("train.jsonl", jsonl(rows))), "test": {"sources": sources(uri)}}
    with pytest.raises(BadDataError) as caught:
        place.prepare(bert, data)
    assert f"{uri} line 4: label 'Mixt' is not among the 3 labels" in str(caught.value)
    assert "nearest is 'mixed'" in str(caught.value)
    prepared = place.prepare(bert, data | {"onBadRecord": "Skip"})
    assert prepared.counts.test == 3
    assert "dropped 1 records: unknown label 1" in prepared.notes


def test_bad_records_stop_the_job_or_are_counted(place, bert):
    rows = classified()
    content = jsonl([{"text": "", "label": "good"}, *rows, {"txt": "x", "label": "good"}]) + b'{"text": "cut off\n'
    uri = place.put("train.jsonl", content)
    with pytest.raises(BadDataError) as caught:
        place.prepare(bert, {"train": sources(uri), "format": "Classification"})
    message = str(caught.value)
    assert "3 records cannot be used" in message
    for part in (
        f"{uri} line 1: column 'text' is empty",
        f"{uri} line 62: no column 'text'",
        f"{uri} line 63: not JSON",
    ):
        assert part in message
    assert "spec.data.columns.text" in caught.value.advice
    prepared = place.prepare(bert, {"train": sources(uri), "onBadRecord": "Skip"})
    assert "dropped 3 records: empty text 1, malformed JSON 1, missing column 1" in prepared.notes
    info = read_dataset_info(place.store, prepared.dataset_uri)
    assert info.dropped == {"empty text": 1, "malformed JSON": 1, "missing column": 1}


@pytest.mark.parametrize(
    ("rows", "data", "expected"),
    [
        (classified()[::3], {}, "all 20 training records have the label 'good'"),
        ([*classified(), {"text": "x", "label": "word " * 900}], {}, "the label has 4,499 characters"),
        (
            [{"text": "x", "label": f"text {i}"} for i in range(60)],
            {},
            "60 different labels, so most labels occur once",
        ),
        (classified(3), {}, "the validation split is empty: 3 records are too few to hold out a fraction of 0.1"),
        ([{"text": " ", "label": "x"}], {"onBadRecord": "Skip"}, "the training split is empty"),
    ],
)
def test_an_unusable_split_is_an_error_with_a_fix(place, bert, rows, data, expected):
    uri = place.put("train.jsonl", jsonl(rows))
    with pytest.raises(BadDataError) as caught:
        place.prepare(bert, {"train": sources(uri)} | data)
    assert expected in str(caught.value)
    assert caught.value.advice


def test_a_text_of_which_the_tokenizer_keeps_nothing_is_dropped_and_reported(place, llama, tmp_path):
    """A row without tokens would have no output."""
    folder = shutil.copytree(llama, tmp_path / "base")
    file = json.loads((folder / "tokenizer.json").read_text())
    file["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    rows = [*classified(30), {"text": "~~~", "label": "good"}]
    prepared = place.prepare(folder, {"train": sources(place.put("train.jsonl", jsonl(rows)))})
    assert "dropped 1 records: no loss within maxLength 1" in prepared.notes
    assert (prepared.counts.train + prepared.counts.validation + prepared.counts.test) == 30
    assert (place.open(prepared).lengths > 0).all()
    assert sum(read_dataset_info(place.store, prepared.dataset_uri).label_counts["train"].values()) == (
        prepared.counts.train
    )


def test_a_prompt_of_which_the_tokenizer_keeps_nothing_is_rejected_before_training(place, llama, tmp_path):
    """A model without a begin token would have nothing to begin an answer with."""
    folder = shutil.copytree(llama, tmp_path / "base")
    file = json.loads((folder / "tokenizer.json").read_text())
    file |= {"normalizer": {"type": "Replace", "pattern": {"String": "~"}, "content": ""}, "post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": None}))
    data = {"train": sources(place.put("train.jsonl", jsonl([{"text": "why? because"}] * 30))), "format": "Text"}
    with pytest.raises(ModelUnusableError, match=r"spec\.evaluation\.prompts\[1\] must have a token.*: '~~'"):
        place.prepare(folder, data, evaluation={"prompts": ["why?", "~~"]})


def test_an_answer_beyond_the_maximum_length_is_dropped_and_reported(place, llama):
    long = {"prompt": "why? " * 300, "completion": "because"}
    short = {"prompt": "why?", "completion": "because"}
    data = {"validation": {"fraction": 0}, "test": {"fraction": 0}}
    uri = place.put("train.jsonl", jsonl([long, short]))
    prepared = place.prepare(llama, {"train": sources(uri)} | data)
    assert prepared.counts.train == 1
    assert "dropped 1 records: no loss within maxLength 1" in prepared.notes
    info = read_dataset_info(place.store, prepared.dataset_uri)
    kept = place.open(prepared).lengths.sum()
    dropped, total = info.dropped_tokens["train"], info.tokens["train"]
    assert (dropped, total - dropped) == (total - kept, kept)
    assert any(note.startswith(f"dropped {dropped} of {total} tokens (") for note in prepared.notes)
    with pytest.raises(BadDataError, match=r"training split is empty; 1 records have nothing .* \(256 tokens\)"):
        place.prepare(llama, {"train": sources(place.put("long.jsonl", jsonl([long])))} | data)


@pytest.mark.parametrize(
    ("lengths", "expected"), [([1] * 50, Batching.PADDED), ([1, 3, 90, 200] * 12, Batching.LENGTH_GROUPED)]
)
def test_the_cheaper_batching_is_chosen_from_the_lengths(place, llama, lengths, expected):
    uri = place.put("train.jsonl", jsonl([{"text": "very" * length} for length in lengths]))
    data = {"train": sources(uri), "validation": {"fraction": 0}, "test": {"fraction": 0}}
    prepared = place.prepare(llama, data)
    assert prepared.batching is expected
    assert any(note.startswith(f"batching {expected}") for note in prepared.notes)
    assert place.prepare(llama, data, training={"batching": "Padded"}).batching is Batching.PADDED


def test_packs_are_counted_and_reported(place, llama):
    uri = place.put("train.jsonl", jsonl([{"text": "very" * length} for length in [1, 3, 9, 20] * 12]))
    data = {"train": sources(uri), "validation": {"fraction": 0}, "test": {"fraction": 0}, "maxLength": 64}
    padded, prepared = place.prepare(llama, data), place.prepare(llama, data, training={"batching": "Packed"})
    assert (prepared.dataset_uri, padded.packs) == (padded.dataset_uri, None)
    lengths = place.open(prepared).lengths
    assert prepared.batching is Batching.PACKED
    assert prepared.packs == -(-int(lengths.sum()) // 64)
    assert prepared.training_rows == prepared.packs < prepared.counts.train == 48
    (note,) = (note for note in prepared.notes if note.startswith("batching Packed"))
    assert note.startswith(f"batching Packed: 48 examples in {prepared.packs} packs of at most 64 tokens")
    assert prepared.memory_estimate_bytes > padded.memory_estimate_bytes


def test_the_saving_of_packs_is_noted_where_the_model_supports_them(place, llama, tmp_path):
    uri = place.put("train.jsonl", jsonl([{"text": "very" * length} for length in [1, 3, 9, 60] * 40]))
    data = {"train": sources(uri), "validation": {"fraction": 0}, "test": {"fraction": 0}, "maxLength": 64}

    def notes(model, **spec) -> list[str]:
        return [note for note in place.prepare(model, data, **spec).notes if "batching Packed would save" in note]

    (note,) = notes(llama)
    found = re.fullmatch(r".* about (\d+)% of the computation, with about as many steps at \S+ (\d+)", note)
    assert found is not None
    # A training with this batch size has about as many steps.
    padded, packed = place.prepare(llama, data), place.prepare(llama, data, training={"batching": "Packed"})
    assert packed.packs / int(found[2]) == pytest.approx(padded.counts.train / 8, rel=0.25)
    assert notes(llama, training={"batching": "Padded"}) == []
    assert notes(llama, method={"promptTuning": {}}) == []
    assert notes(save_state_space_model(tmp_path / "mamba")) == []


def test_packs_are_refused_where_examples_would_not_be_kept_apart(place, bert, tmp_path):
    texts = sources(place.put("train.jsonl", jsonl([{"text": "very good"}] * 20)))
    mamba = save_state_space_model(tmp_path / "mamba")
    with pytest.raises(BadConfigError, match=r"MambaForCausalLM.* does not keep the examples of a pack apart") as error:
        place.prepare(mamba, {"train": texts}, training={"batching": "Packed"})
    assert "spec.training.batching: Padded" in error.value.advice
    assert place.prepare(mamba, {"train": texts}, training={"batching": "Padded"}).packs is None
    labeled = sources(place.put("labeled.jsonl", jsonl([{"text": "good", "label": "a"}] * 20)))
    with pytest.raises(
        BadConfigError, match=r"spec\.training\.batching must be Padded or LengthGrouped for a classifier"
    ):
        place.prepare(bert, {"train": labeled}, training={"batching": "Packed"})


def save_state_space_model(folder):
    import transformers

    tokenizer = tiny_models.tiny_tokenizer()
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, pad_token_id=0)
    transformers.MambaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_cannot_be_trained_on_chats(place, bert):
    uri = place.put("chat.jsonl", jsonl(chats()))
    with pytest.raises(ModelUnusableError, match="is an encoder"):
        place.prepare(bert, {"train": sources(uri)})


def test_an_adapter_on_a_tied_head_is_rejected_before_anything_is_written(place, tmp_path):
    tied = tiny_models.save_tiny("llama-tied", tmp_path / "tied")
    data = {"train": sources(place.put("chat.jsonl", jsonl(chats()))), "format": "Text"}
    with pytest.raises(BadConfigError, match="lm_head shares its matrix with embed_tokens") as error:
        place.prepare(tied, data, method={"lora": {"targetModules": ["q_proj", "lm_head"]}})
    assert "targetModules: [q_proj]" in error.value.advice
    assert not list(place.store.list(f"{place.uri}/out/datasets/"))


def resized(base: Path, folder: Path, rows: int, *, pad: str = "") -> Path:
    """A copy of the base model whose embedding has `rows` rows."""
    import transformers

    shutil.copytree(base, folder)
    (architecture,) = json.loads((base / "config.json").read_text())["architectures"]
    model = getattr(transformers, architecture).from_pretrained(base)
    model.resize_token_embeddings(rows)
    model.save_pretrained(folder)
    if pad:
        tokenizer = load_tokenizer(base)
        tokenizer.add_special_tokens({"pad_token": pad})
        tokenizer.save_pretrained(folder)
    return folder


def test_an_embedding_smaller_than_the_tokenizer_is_rejected_if_the_data_needs_the_rest(place, bert, tmp_path):
    tokenizer = load_tokenizer(bert)
    size, uri = len(tokenizer), place.put("train.jsonl", jsonl(classified()))
    needed = place.prepare(bert, {"train": sources(uri)})
    largest = read_dataset_info(place.store, needed.dataset_uri).largest_token
    splits = [place.open(needed, split) for split in ("train", "validation", "test")]
    assert largest == max(max(split[index]["input_ids"]) for split in splits for index in range(len(split)))

    enough = place.prepare(resized(bert, tmp_path / "enough", largest + 1), {"train": sources(uri)})
    assert enough.reused
    with pytest.raises(ModelUnusableError) as caught:
        place.prepare(resized(bert, tmp_path / "small", largest), {"train": sources(uri)})
    token = tokenizer.convert_ids_to_tokens(largest)
    expected = f"token {token!r} has the id {largest}, but the model's embedding has {largest} rows"
    assert f"{expected}; the tokenizer has {size} tokens" in str(caught.value)
    with pytest.raises(ModelUnusableError, match=rf"pad_token '\[PAD\]' has the id {size}, .* has {size} rows"):
        place.prepare(resized(bert, tmp_path / "padded", size, pad="[PAD]"), {"train": sources(uri)})
    place.prepare(resized(bert, tmp_path / "large", size + 64), {"train": sources(uri)})


@pytest.mark.parametrize("data_format", [DataFormat.TEXT, DataFormat.CHAT])
def test_a_prompt_with_a_token_beyond_the_embedding_is_rejected_before_training(place, llama, tmp_path, data_format):
    tokenizer = load_tokenizer(llama)
    beyond = len(tokenizer) - 1
    word = tokenizer.decode([beyond])
    assert tokenizer(word, add_special_tokens=False).input_ids == [beyond]
    rows = [{"text": "0 1 2"}] * 20 if data_format is DataFormat.TEXT else chats()
    data = {
        "train": sources(place.put("rows.jsonl", jsonl(rows))),
        "format": data_format,
        "validation": {"fraction": 0},
        "test": {"fraction": 0},
    }
    base = resized(llama, tmp_path / "small", beyond)
    place.prepare(base, data, evaluation={"prompts": ["0 1"]})
    with pytest.raises(ModelUnusableError) as caught:
        place.prepare(base, data, evaluation={"prompts": ["0 1", f"1 {word}"]})
    expected = (
        f"spec.evaluation.prompts[1]: its token {word!r} has the id {beyond}, but the model's embedding has {beyond}"
    )
    assert f"{expected} rows; the tokenizer has {beyond + 1} tokens" in str(caught.value).replace("Ġ", " ")
    place.prepare(llama, data, evaluation={"prompts": ["0 1", f"1 {word}"]})


def test_a_prompt_that_the_chat_template_rejects_is_an_error_before_training(place, tmp_path):
    refuses = "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + tiny_models.CHATML
    base = tiny_models.save_tiny_llama(tmp_path / "refuses", refuses)
    data = {"train": sources(place.put("chat.jsonl", jsonl(chats())))}
    with pytest.raises(ModelUnusableError, match=r"spec\.evaluation\.prompts\[1\] cannot be used: .* no"):
        place.prepare(base, data, evaluation={"prompts": ["good", "bad"]})


def test_a_base_like_mpnet_gets_its_maximum_length_and_a_warning_about_gradient_checkpointing(place, tmp_path):
    """Its positions start after the pad id, and it does not support gradient checkpointing."""
    from transformers import MPNetConfig, MPNetModel

    tokenizer = tiny_models.tiny_tokenizer()
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=1, **size)
    MPNetModel(config).save_pretrained(tmp_path / "mpnet")
    tokenizer.save_pretrained(tmp_path / "mpnet")
    data = {"train": sources(place.put("train.jsonl", jsonl(classified())))}
    with pytest.raises(BadConfigError, match="EveryNLayers must be 1 for MPNetForSequenceClassification, whose layers"):
        place.prepare(tmp_path / "mpnet", data, training={"gradientCheckpointingEveryNLayers": 2})
    prepared = place.prepare(tmp_path / "mpnet", data)
    assert "maxLength 1024 lowered to 38, the maximum of the model" in prepared.notes
    assert not prepared.supports_gradient_checkpointing
    (warning,) = prepared.warnings
    assert "MPNetForSequenceClassification does not support gradient checkpointing" in warning
    assert place.report.progress.warnings == prepared.warnings


@pytest.mark.parametrize(("every", "pruning", "most"), [(3, {}, 2), (2, {"algorithm": "DropLayers", "layers": 1}, 1)])
def test_checkpointing_of_fewer_than_one_layer_is_refused(place, bert, every, pruning, most):
    data = {"train": sources(place.put("train.jsonl", jsonl(classified())))}
    method = {"full": {"pruning": pruning} if pruning else {}}
    with pytest.raises(BadConfigError, match=f"EveryNLayers must be at most {most}, the number of layers of Bert"):
        place.prepare(bert, data, method=method, training={"gradientCheckpointingEveryNLayers": every})


def test_a_base_that_classifies_other_labels_causes_a_warning(place, bert, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path / "classifier"
    shutil.copytree(bert, folder)
    AutoModelForSequenceClassification.from_pretrained(bert, id2label={0: "spam", 1: "ham"}).save_pretrained(folder)
    prepared = place.prepare(folder, {"train": sources(place.put("train.jsonl", jsonl(classified())))})
    (warning,) = prepared.warnings
    assert "has other labels (spam, ham) than the data, so its output layer is randomly initialized" in warning
    assert place.report.progress.warnings == prepared.warnings


def test_weights_with_other_names_are_rejected_before_any_data_is_read(place, bert, tmp_path):
    folder = tmp_path / "wrapped"
    shutil.copytree(bert, folder)
    weights = load_file(bert / "model.safetensors")
    save_file({f"module.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    with pytest.raises(ModelUnusableError, match=r"39 weights .* not used: module\.embeddings"):
        place.prepare(folder, {"train": sources(place.put("train.jsonl", jsonl(classified())))})
    assert not list(place.store.list(f"{place.uri}/out/datasets/"))


def test_a_job_that_cannot_fit_is_rejected_before_anything_is_written(place, bert):
    uri = place.put("train.jsonl", jsonl(classified()))
    with pytest.raises(BadConfigError, match=r"limits\.memory must be at least .*, not 512Mi;") as caught:
        place.prepare(bert, {"train": sources(uri)}, workers={"resources": {"limits": {"memory": "512Mi"}}})
    assert "raise spec.workers.resources.limits.memory to 1Gi" in caught.value.advice
    assert list(place.store.list(f"{place.uri}/out/datasets/")) == []


def test_the_lowest_stage_that_fits_the_memory_limit_is_chosen(place, bert):
    uri = place.put("train.jsonl", jsonl(classified()))
    prepared = place.prepare(bert, {"train": sources(uri)}, workers={"resources": {"limits": {"memory": "4Gi"}}})
    assert prepared.zero_stage == 0
    assert any("ZeRO stage 0" in note for note in prepared.notes)


def test_the_largest_micro_batch_that_fits_the_memory_limit_is_chosen(place, llama):
    """With fp32 logits of 16 rows the training would not fit; with a size in the spec it is not reduced."""
    uri = place.put("train.jsonl", jsonl(chats()))
    blocks = {"data": {"train": sources(uri)}, "training": {"globalBatchSize": 32}}
    unlimited = place.prepare(llama, blocks["data"], training=blocks["training"])
    assert unlimited.micro_batch_limit is None
    limit = str(unlimited.memory_estimate_bytes - 2**20)
    limited = place.prepare(
        llama, blocks["data"], training=blocks["training"], workers={"resources": {"limits": {"memory": limit}}}
    )
    assert limited.micro_batch_limit in {1, 2, 4, 8}
    assert limited.memory_estimate_bytes <= int(limit)
    assert any(note.startswith("micro-batch ") for note in limited.notes)


def test_settings_that_fit_the_memory_of_a_gpu_are_chosen(place, llama):
    """CUDA alone needs 1,343 MiB, and DeepSpeed's buckets 8 MB; what remains is smaller than usual."""
    data = {"train": sources(place.put("train.jsonl", jsonl(chats())))}

    def prepared(gpu_memory: int | None = None, offload: str | None = None, **resources: Any) -> Prepared:
        workers = {"gpusPerNode": 1, "resources": resources}
        if gpu_memory is not None:
            workers["gpuMemory"] = str(gpu_memory)
        training = {"learningRate": 1e-3, "globalBatchSize": 32}
        return place.prepare(llama, data, training=training, workers=workers, deepspeed={"offload": offload})

    unlimited = prepared(limits={"memory": "512Mi"})
    assert (unlimited.zero_stage, unlimited.micro_batch_limit, unlimited.offload) == (2, None, Offload.NONE)
    assert any("not checked; set it to the memory of one GPU" in note for note in unlimited.notes)
    assert any(
        "host memory, more than spec.workers.resources.limits.memory allows; raise it to" in note
        for note in unlimited.notes
    )
    limit = unlimited.memory_estimate_bytes - 1
    limited = prepared(limit)
    assert limited.memory_estimate_bytes <= limit
    assert (limited.micro_batch_limit, limited.micro_batch_memory) == (4, f"{limit} per GPU")
    assert any(
        "micro-batch 4 instead of 8: the largest that fits the memory of a GPU" in note for note in limited.notes
    )
    small = CONTEXT_BYTES + 9_500_000
    offloaded = prepared(small)
    assert (offloaded.zero_stage, offloaded.offload) == (2, Offload.OPTIMIZER)
    assert any("offload Optimizer: nothing else fits" in note for note in offloaded.notes)
    with pytest.raises(BadConfigError, match=r"gpuMemory must be at least .* micro-batch 1, .*, not 1352Mi;") as caught:
        prepared(small, "None")
    assert "set spec.deepspeed.offload: Optimizer" in caught.value.advice
    with pytest.raises(BadConfigError, match=r"must be at least .*, not 512Mi; .* on the host of each worker"):
        prepared(small, limits={"memory": "512Mi"})
    with pytest.raises(
        BadConfigError, match=r"gpuMemory must be at least .* offload Optimizer, .*micro-batch 1, .*, not 1343Mi;"
    ):
        prepared(CONTEXT_BYTES)


def test_stratify_without_labels_is_rejected(place, llama):
    uri = place.put("train.jsonl", jsonl(chats()))
    with pytest.raises(BadConfigError, match=r"spec\.data\.test\.stratify"):
        place.prepare(llama, {"train": sources(uri), "test": {"fraction": 0.1, "stratify": True}})


def test_storage_is_checked_before_anything_else(place, bert, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    place.store = ObjectStore.connect(place.settings)
    with pytest.raises(AccessDeniedError):
        place.prepare(bert, {"train": sources("file:///no/such/file.jsonl")})


def test_a_shard_that_changed_in_storage_is_not_used(place, bert):
    uri = place.put("train.jsonl", jsonl(classified()))
    prepared = place.prepare(bert, {"train": sources(uri)})
    (shard,) = read_dataset_info(place.store, prepared.dataset_uri).shards["train"]
    shard_uri = f"{prepared.dataset_uri}/shards/{shard.name}"
    content = bytearray(place.store.get(shard_uri))
    content[-1] ^= 1
    place.store.put(shard_uri, bytes(content))
    with pytest.raises(BadDataError, match="content does not match its digest"):
        place.open(prepared)


def test_a_cached_shard_that_another_job_changed_is_downloaded_again(place, bert):
    """Its size is the same; only the content differs."""
    prepared = place.prepare(bert, {"train": sources(place.put("train.jsonl", jsonl(classified())))})
    first = place.open(prepared)[0]
    (shard,) = read_dataset_info(place.store, prepared.dataset_uri).shards["train"]
    cached = place.folder / "cache" / "datasets" / prepared.dataset_digest / shard.name
    good = cached.read_bytes()
    cached.write_bytes(good[:-8] + bytes(8))
    assert place.open(prepared)[0]["input_ids"].tolist() == first["input_ids"].tolist()
    assert cached.read_bytes() == good


def test_rows_are_distributed_over_shards_and_read_back(place):
    writer = ShardWriter(place.store, f"{place.uri}/ds", "train", vocabulary=70_000, max_bytes=4096 + 400)
    rows = [np.arange(length, dtype=np.int64) + 69_000 for length in range(1, 30)]
    for number, row in enumerate(rows):
        writer.add(np.array([len(row)]), row, loss=np.arange(len(row)) % 2 == number % 2)
    writer.flush()
    assert len(writer.shards) > 3
    info = {
        "version": FORMAT_VERSION,
        "digest": "d",
        "format": "Text",
        "task": "CausalLM",
        "seed": 1,
        "max_length": 64,
        "tokenizer_digest": "t",
        "largest_token": 0,
        "counts": {"train": 29},
        "lengths": {"train": dict(writer.lengths)},
        "sources": [],
        "shards": {"train": [shard.model_dump() for shard in writer.shards]},
    }
    place.store.put(f"{place.uri}/ds/{DATASET_FILE}", json.dumps(info).encode())
    dataset = TokenDataset.open(place.store, f"{place.uri}/ds", "train", place.folder / "cache")
    assert dataset.lengths.tolist() == list(range(1, 30))
    for number, row in enumerate(rows):
        found = dataset[number]
        assert found["input_ids"].tolist() == row.tolist()
        flags = np.arange(len(row)) % 2 == number % 2
        assert found["labels"].tolist() == np.where(flags, row, -100).tolist()
    with pytest.raises(IndexError):
        dataset[29]


def test_the_real_smollm2_is_trained_only_on_the_assistants_messages(place, smollm2_folder):
    messages = [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "It is 4. Sure?"},
        {"role": "assistant", "content": "Yes: Ünï → ok"},
    ]
    uri = place.put("chat.jsonl", jsonl([{"messages": messages}]))
    data = {"train": sources(uri), "validation": {"fraction": 0}, "test": {"fraction": 0}}
    prepared = place.prepare(smollm2_folder, data)
    assert 134_000_000 < prepared.parameters < 135_000_000
    tokenizer = load_tokenizer(smollm2_folder)
    labels = place.open(prepared)[0]["labels"]
    assert tokenizer.decode(labels[labels != -100]) == "It is 4.<|im_end|>Yes: Ünï → ok<|im_end|>"


def test_setfit_takes_few_texts_and_two_of_them_in_a_row(place, bert):
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(2_002)]
    none = {"validation": {"fraction": 0}, "test": {"fraction": 0}}
    data = {"train": sources(place.put("train.jsonl", jsonl(rows))), **none}
    with pytest.raises(BadConfigError, match=r"method\.setFit must have at most 2,000 training examples, not 2,002"):
        place.prepare(bert, data, method={"setFit": {}})
    few = data | {"fewShot": {"perClass": 8}}
    pairs, texts = (place.prepare(bert, few, method={name: {}}) for name in ("setFit", "full"))
    assert pairs.counts.train == texts.counts.train == 16
    assert pairs.memory_estimate_bytes > texts.memory_estimate_bytes
    assert any("pairs of texts" in note for note in pairs.notes)
    assert pairs.batching is Batching.PADDED


def test_the_real_minilm_is_measured_and_accepts_512_tokens(place, minilm_folder):
    uri = place.put("train.jsonl", jsonl(classified()))
    prepared = place.prepare(minilm_folder, {"train": sources(uri)})
    assert 22_000_000 < prepared.parameters < 23_000_000
    assert read_dataset_info(place.store, prepared.dataset_uri).max_length == 512


@pytest.mark.parametrize(
    ("rows", "blocks", "says"),
    [
        pytest.param(
            classified(),
            {"training": {"earlyStopping": {"metric": "Perplexity", "patience": 1}}},
            "spec.training.earlyStopping.metric must",
            id="a classifier has no perplexity",
        ),
        pytest.param(
            [{"text": f"row {number}"} for number in range(30)],
            {"training": {"earlyStopping": {"metric": "Accuracy", "patience": 1}}},
            "spec.training.earlyStopping.metric must",
            id="a language model has no accuracy",
        ),
        pytest.param(
            classified(),
            {"evaluation": {"promote": {"thresholds": [{"metric": "EntityF1", "min": 0.5}]}}},
            "spec.evaluation.promote.thresholds[].metric must",
            id="a classifier has no entity F1 to be promoted by",
        ),
        pytest.param(
            classified(),
            {"evaluation": {"prompts": ["Hello"]}},
            "spec.evaluation.prompts must",
            id="a classifier answers no prompts",
        ),
    ],
)
def test_unsupported_fields_of_the_inferred_task_are_rejected_before_training(place, bert, llama, rows, blocks, says):
    training = {"learningRate": 1e-3, "globalBatchSize": 8} | blocks.pop("training", {})
    model = bert if "label" in rows[0] else llama
    with pytest.raises(BadConfigError, match=re.escape(says)):
        place.prepare(model, {"train": sources(place.put("rows.jsonl", jsonl(rows)))}, training=training, **blocks)


@pytest.mark.parametrize(
    ("name", "block", "library"),
    [
        ("tensorBoard", {}, "tensorboard"),
        ("mlflow", {"trackingUri": "http://127.0.0.1:9", "experiment": "topics"}, "mlflow-skinny"),
        ("wandb", {"project": "topics"}, "wandb"),
    ],
)
def test_a_tracker_that_the_image_lacks_is_refused_before_anything_is_read(
    place, bert, monkeypatch, name: str, block: dict[str, Any], library: str
) -> None:
    monkeypatch.setattr(type(TRACKERS[name]), "module", "a_module_that_no_image_has")
    with pytest.raises(BadConfigError) as caught:
        place.prepare(bert, {"train": sources(f"{place.uri}/missing.jsonl")}, tracking={name: block})
    assert str(caught.value) == f"spec.tracking.{name} requires {library}, which this trainer image does not have"
    assert caught.value.advice == f"use an image with finetune-operator[tracking], or remove spec.tracking.{name}"
