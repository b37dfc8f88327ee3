"""Simple baselines: fitted to rows of tokens, compared with scikit-learn on the same terms, and bounded."""

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from finetune_api.v1alpha1 import BASELINE_SUPPORT, SimpleBaseline
from finetune_trainer.evaluate.baselines import BASELINES, NotFittedError
from finetune_trainer.evaluate.baselines import tfidf_logistic_regression as tfidf

LINEAR = SimpleBaseline.TFIDF_LOGISTIC_REGRESSION


class Rows:
    """A training split in memory that counts the rows that are read."""

    def __init__(self, rows: list[dict[str, Any]], classes: int) -> None:
        self.rows = rows
        self.label_counts = np.bincount([row["labels"] for row in rows], minlength=classes)
        self.read = 0

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, most: int) -> Iterator[dict[str, Any]]:
        for row in self.rows[:most]:
            self.read += 1
            yield row


def made(number: int, classes: int, *, length: int = 8, words: int = 50) -> list[dict[str, Any]]:
    """Rows of random tokens; one of them is the label."""
    generator = np.random.default_rng(5)
    labels = generator.integers(0, classes, number)
    return [
        {"input_ids": np.append(generator.integers(0, words, length), words + label), "labels": int(label)}
        for label in labels
    ]


def targets_of(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["labels"] for row in rows])


def test_every_baseline_is_implemented_and_named() -> None:
    assert set(BASELINES) == set(SimpleBaseline) == set(BASELINE_SUPPORT)


def test_the_majority_class_is_predicted_with_the_share_of_each_label() -> None:
    rows = Rows([{"labels": label} for label in (0, 2, 2, 2)], classes=4)
    found = BASELINES[SimpleBaseline.MAJORITY_CLASS].fit(rows).answers([], np.array([2, 0, 1]))
    assert found.predictions.tolist() == [2, 2, 2]
    assert np.exp(-found.losses) == pytest.approx([4 / 8, 2 / 8, 1 / 8])
    assert rows.read == 0


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_baseline_is_that_of_scikit_learn_on_the_tokens_as_words(classes: int) -> None:
    rows, test = made(200, classes), made(40, classes)
    found = BASELINES[LINEAR].fit(Rows(rows, classes)).answers(test, targets_of(test))

    words = [[f"w{token}" for token in row["input_ids"]] for row in (*rows, *test)]
    terms = TfidfVectorizer(analyzer=lambda text: text, dtype=np.float32).fit(words[:200])
    model = LogisticRegression().fit(terms.transform(words[:200]), targets_of(rows))
    expected = model.predict_proba(terms.transform(words[200:]))
    assert found.predictions.tolist() == expected.argmax(axis=1).tolist()
    of_target = expected[np.arange(40), targets_of(test)]
    assert np.exp(-found.losses) == pytest.approx(of_target, rel=0.01)
    assert (found.predictions == targets_of(test)).mean() > 0.9


def test_a_label_without_training_rows_has_a_finite_loss_and_is_not_predicted() -> None:
    rows = [row for row in made(100, 3) if row["labels"] != 1]
    found = BASELINES[LINEAR].fit(Rows(rows, 3)).answers(rows[:2], np.array([1, rows[1]["labels"]]))
    assert found.losses[0] == pytest.approx(-np.log(np.finfo(np.float64).eps))
    assert found.losses[1] < 1
    assert 1 not in found.predictions


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        (made(10, 2), tfidf.MAX_CLASSES + 1, "there are 1,001 classes, more than 1,000"),
        ([row | {"labels": 1} for row in made(10, 2)], 2, "the 10 training rows .* have a single label"),
    ],
)
def test_a_split_that_the_linear_baseline_cannot_be_fitted_to_is_refused_with_the_reason(
    rows: list[dict[str, Any]], classes: int, message: str
) -> None:
    with pytest.raises(NotFittedError, match=message):
        BASELINES[LINEAR].fit(Rows(rows, classes))


@pytest.mark.parametrize(
    ("bound", "value", "rows", "note"),
    [
        ("MAX_ROWS", 30, 30, "It is fitted to 30 of the 200 training rows."),
        ("_ROWS_X_CLASSES", 80, 40, "It is fitted to 40 of the 200 training rows."),
        ("MAX_TOKENS", 95, 11, "It is fitted to 10 of the 200 training rows."),
        ("_TOKENS_X_CLASSES", 190, 11, "It is fitted to 10 of the 200 training rows."),
        ("MAX_FEATURES", 25, 200, "It uses the 25 most frequent tokens."),
        ("_FEATURES_X_CLASSES", 50, 200, "It uses the 25 most frequent tokens."),
        ("MAX_ITERATIONS", 1, 200, "Its solver was stopped after 1 iterations."),
    ],
)
def test_above_a_bound_the_first_rows_or_the_most_frequent_tokens_are_used_and_noted(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int, rows: int, note: str
) -> None:
    monkeypatch.setattr(tfidf, bound, value)
    split = Rows(made(200, 2), 2)
    assert BASELINES[LINEAR].fit(split).notes == (note,)
    assert split.read == rows


def test_fitting_twice_gives_the_same_answers() -> None:
    rows = made(300, 5)
    first, second = (BASELINES[LINEAR].fit(Rows(rows, 5)).answers(rows, targets_of(rows)) for _ in range(2))
    assert np.array_equal(first.losses, second.losses)


def test_the_largest_split_is_fitted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf, "MAX_ITERATIONS", 12)  # more than the vectors that the solver keeps
    rows = Rows(made(12_000, 100, length=90, words=30_000), 100)
    tracemalloc.start()
    BASELINES[LINEAR].fit(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < tfidf.MAX_BYTES
