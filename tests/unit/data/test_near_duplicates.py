"""Which records the step for near-duplicates removes, compared with the exact Jaccard index of all pairs."""

import random
from typing import Any

import numpy as np
import pytest

from feature_rows import removed_rows
from finetune_api.v1alpha1 import Spec
from finetune_trainer.data import comparison
from finetune_trainer.data.formats import Example
from finetune_trainer.data.problems import Place
from finetune_trainer.data.steps.near_duplicates import SKETCH, Parameters, bands_of, features, shingles, similarity


def spec_of(cleaning: dict[str, Any]) -> Spec:
    return Spec.model_validate(
        {
            "model": {"uri": "s3://bucket/model"},
            "data": {"train": [{"uri": "s3://bucket/a.jsonl"}], "cleaning": cleaning},
            "training": {"learningRate": 1e-3},
            "output": {"uri": "s3://bucket/out"},
        }
    )


def runs_of(text: str) -> set[str]:
    text = " ".join(text.casefold().split())
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def exact(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


def words(chosen: random.Random, count: int) -> list[str]:
    return ["".join(chosen.choices("abcdefghijklmnop", k=chosen.randint(3, 9))) for _ in range(count)]


def corpus(seed: int) -> tuple[list[str], list[int | None]]:
    """Texts, and for each planted copy with some other words the index of the earlier text that it is a copy of."""
    chosen = random.Random(seed)
    vocabulary = words(chosen, 1500)
    texts = [" ".join(chosen.choices(vocabulary, k=chosen.randint(15, 60))) for _ in range(900)]
    copies: list[int | None] = [None] * len(texts)
    for original in chosen.sample(range(len(texts)), 500):
        copy = texts[original].split()
        for place in chosen.sample(range(len(copy)), chosen.randint(0, max(1, len(copy) // 6))):
            copy[place] = chosen.choice(vocabulary)
        texts.append("  ".join(copy).title())
        copies.append(original)
    return texts, copies


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_precision_and_recall_with_the_exact_jaccard_index(tmp_path, threshold):
    texts, copies = corpus(seed=3)
    runs = [runs_of(text) for text in texts]
    removed = set(removed_rows(spec_of({"nearDuplicates": threshold}), texts, tmp_path, blocks=3))
    similar = {
        place
        for place, original in enumerate(copies)
        if original is not None and exact(runs[original], runs[place]) >= threshold
    }
    assert len(similar) > 30
    # The original of a copy is compared first, because it is usually the similar text.
    earlier = {place: (*filter(None, [copies[place]]), *range(place)) for place in removed}
    correct = {place for place in removed if any(exact(runs[one], runs[place]) >= threshold for one in earlier[place])}
    assert len(removed & similar) / len(similar) >= 0.98
    assert len(correct) / len(removed) >= 0.95


def test_the_result_depends_on_neither_blocks_nor_ranges(tmp_path, monkeypatch):
    texts, _ = corpus(seed=4)
    spec = spec_of({"nearDuplicates": 0.7})
    whole = removed_rows(spec, texts, tmp_path)
    monkeypatch.setattr(comparison, "_RANGE", 700)
    assert [removed_rows(spec, texts, tmp_path, blocks=blocks) for blocks in (2, 5)] == [whole] * 2
    assert len(whole) > 200


ONE = "the quick brown fox jumps over the lazy dog near the river bank"
LIKE = ONE.replace("lazy", "hazy")
OTHER = "an entirely different sentence about the weather of tomorrow morning"


@pytest.mark.parametrize(
    ("texts", "held_out", "removed"),
    [
        ([ONE, OTHER, LIKE], [], [2]),
        ([LIKE, ONE, ONE], [], [1, 2]),
        ([ONE, OTHER], [LIKE], [0]),
        ([ONE, LIKE, OTHER], [LIKE, ONE, OTHER], [0, 1, 2]),
        ([OTHER], [ONE, LIKE, ONE], []),
        (["a", "b", "a"], [], [2]),
        (["\u6771\u4eac\u306e\u5929\u6c17\u306f\u6674\u308c\u3067\u3059"] * 2 + ["\u5929\u6c17"], [], [1]),
    ],
)
def test_the_first_of_similar_training_records_is_kept_unless_a_held_out_record_is_similar(
    tmp_path, texts, held_out, removed
):
    assert removed_rows(spec_of({"nearDuplicates": 0.7}), texts, tmp_path, held_out=held_out) == removed


def test_long_texts_are_compared_by_their_smallest_hashes():
    chosen = random.Random(5)
    one = words(chosen, 3000)
    for changed in (30, 100, 400):
        other = [*one[:-changed], *words(chosen, changed)]
        texts = [" ".join(each) for each in (one, other)]
        sketches = [np.unique((shingles([text]) >> np.uint64(32)).astype(np.uint32))[:SKETCH] for text in texts]
        assert similarity(*sketches) == pytest.approx(exact(*map(runs_of, texts)), abs=0.05)


def test_signatures_have_enough_bands_for_texts_at_the_threshold():
    for threshold in (0.5, 0.62, 0.8, 0.95, 0.999):
        bands, rows = bands_of(threshold)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert bands_of(1.0) == (1, 128)


def test_features_are_the_same_in_batches_of_any_size():
    examples = [Example(text, Place("a", number)) for number, text in enumerate(corpus(seed=6)[0][:20])]
    parameters = Parameters(0.8, 1)
    whole = features(parameters, examples)
    parts = [features(parameters, [example]) for example in examples]
    for name in ("keys", "key_counts", "evidence", "evidence_counts"):
        assert np.concatenate([getattr(part, name) for part in parts]).tolist() == getattr(whole, name).tolist()
