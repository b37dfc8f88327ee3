"""`spec.model.vocabulary` in the prepare stage: the rows have fewer tokens, and the model has rows for them."""

import json
from typing import Any

import pytest

from finetune_trainer.data import build, prepare
from finetune_trainer.errors import BadConfigError
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.new_tokens import NewTokens
from prepare_fixture import PrepareFixture
from rows import classified, jsonl

TERMS = ("myocarditis", "bradycardia", "tachycardia", "endocarditis")
SPLITS = {"validation": {"fraction": 0.2}, "test": {"fraction": 0.2}}


def reports(count: int = 60) -> list[dict[str, str]]:
    return [
        {"text": f"patient {number} has {TERMS[number % 4]} and not {TERMS[(number + 1) % 4]}"}
        for number in range(count)
    ]


@pytest.fixture
def data(place) -> dict[str, Any]:
    return {"train": [{"uri": place.put("a.jsonl", jsonl(reports()))}], "format": "Text", **SPLITS}


def model_block(folder, **vocabulary: Any) -> dict[str, Any]:
    return {"uri": f"file://{folder}", "vocabulary": vocabulary}


def added_tokens(place: PrepareFixture, prepared: Any) -> NewTokens:
    uri = f"{place.uri}/out/models/{prepared.model_digest}/vocabulary.json"
    return NewTokens.model_validate_json(place.store.get(uri))


def rows_of(place: PrepareFixture, prepared: Any, split: str) -> list[tuple[int, ...]]:
    rows = place.open(prepared, split)
    return [tuple(rows[index]["input_ids"].tolist()) for index in range(len(rows))]


def test_the_rows_of_all_splits_are_those_of_the_base_model_with_words_as_one_token(place, llama, data):
    plain = place.prepare(llama, data)
    prepared = place.prepare(llama, data, model=model_block(llama, add=[*TERMS, "and"]))
    assert prepared.vocabulary.original_digest == plain.model_digest == plain.original_model_digest
    assert len({plain.model_digest, prepared.model_digest}) == len({plain.dataset_digest, prepared.dataset_digest}) == 2
    pieces = added_tokens(place, prepared).pieces
    assert prepared.vocabulary.added == len(pieces) == 2 * len(TERMS)
    for split in ("train", "validation", "test"):
        rows = rows_of(place, prepared, split)
        restored = [tuple(piece for token in row for piece in pieces.get(token, (token,))) for row in rows]
        assert restored == rows_of(place, plain, split) != []
        assert all(len([token for token in row if token in pieces]) == 2 for row in rows)
    before, after = prepared.vocabulary.tokens_per_word
    assert before > 1.3 * after
    assert prepared.notes[0] == (
        f"8 tokens added to the vocabulary: {before:.3g} -> {after:.3g} tokens per word of the training split"
    )
    assert prepared.notes[1] == f"spec.model.vocabulary.add: 'and' is in the vocabulary of file://{llama}"


def test_learned_words_are_frequent_in_the_training_split_alone(place, llama, data):
    held_out = [{"text": "glomerulonephritis of the patient"} for _ in range(30)]
    rows = [*reports(), *({"text": f"rare once{number}word"} for number in range(2))]
    data |= {
        "train": [{"uri": place.put("b.jsonl", jsonl(rows))}],
        "test": {"sources": [{"uri": place.put("test.jsonl", jsonl(held_out))}]},
    }
    prepared = place.prepare(llama, data, model=model_block(llama, learn=100))
    texts = {token.text for token in added_tokens(place, prepared).tokens}
    assert texts == {f" {term}" for term in TERMS}
    few = place.prepare(llama, data, model=model_block(llama, learn=2))
    assert few.vocabulary.added == 2
    assert {token.text for token in added_tokens(place, few).tokens} < {f" {term}" for term in TERMS}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_digests_do_not_depend_on_the_number_of_processes(place, models, data, monkeypatch, kind):
    if kind == "bert":
        data = {"train": [{"uri": place.put("c.jsonl", jsonl(classified(60)))}], **SPLITS}
    found = set()
    for workers in (0, 8):
        monkeypatch.setattr(build, "worker_count", lambda _, count=workers: count)
        for uri in list(place.store.list(f"{place.uri}/out/")):
            place.store.delete(uri.uri)
        prepared = place.prepare(models[kind], data, model=model_block(models[kind], add=["COVID-19"], learn=9))
        info = json.loads(place.store.get(f"{prepared.dataset_uri}/dataset.json"))
        found.add((prepared.model_digest, prepared.dataset_digest, json.dumps(info["shards"]), prepared.vocabulary))
    assert len(found) == 1


def test_a_second_preparation_reuses_the_rows(place, llama, data, monkeypatch):
    block = model_block(llama, learn=3)
    first = place.prepare(llama, data, model=block)
    monkeypatch.setattr(prepare, "build_dataset", None)
    again = place.prepare(llama, data, model=block)
    assert again.reused
    assert again.model_copy(update={"reused": False}) == first


def test_a_vocabulary_that_adds_nothing_is_refused(place, llama, data):
    with pytest.raises(BadConfigError, match="must add at least one token: 'the', 'and' are in the vocabulary of file"):
        place.prepare(llama, data, model=model_block(llama, add=["the", "and"]))


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_an_added_word_that_no_training_record_has_gets_a_warning(place, models, kind):
    """Also if a held-out record has it."""
    rows = [{**row, "label": "ab"[number % 2]} for number, row in enumerate(reports())]
    data = {
        "train": [{"uri": place.put("a.jsonl", jsonl(rows))}],
        "validation": {"fraction": 0.2},
        "format": "Classification" if kind == "bert" else "Text",
    }
    held_out = [{"text": f"{word} nephritis", "label": "a"} for word in TERMS]
    data["test"] = {"sources": [{"uri": place.put("test.jsonl", jsonl(held_out))}]}
    unused, all_used = (
        place.prepare(models[kind], data, model=model_block(models[kind], add=words))
        for words in (["nephritis", TERMS[0], "xenograft"], [*TERMS])
    )
    (warning,) = [text for text in unused.warnings if "vocabulary" in text]
    assert warning == (
        "spec.model.vocabulary.add: no row of the training split has 'nephritis', 'xenograft', so the new embeddings "
        "are not trained; remove the words, or add records with them"
    )
    assert not [text for text in all_used.warnings if "vocabulary" in text]


def test_prompts_and_special_tokens_are_read_by_the_stored_tokenizer(place, llama, data):
    prepared = place.prepare(llama, data, model=model_block(llama, add=list(TERMS)))
    folder = place.folder / "stored"
    place.store.download_folder(f"{place.uri}/out/models/{prepared.model_digest}", folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == load_tokenizer(llama).eos_token_id
    assert len(tokenizer) == json.loads((folder / "config.json").read_text())["vocab_size"]
    assert tokenizer.chat_template == load_tokenizer(llama).chat_template
