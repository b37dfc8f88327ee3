"""Entities of labels in every scheme, and their F1, against tables and the rules of seqeval."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.v1alpha1 import ENTITY_PREFIXES, TASK_SUPPORT, Metric, Task
from finetune_trainer.tasks.entities import EntityLabels, entity_counts, entity_f1


def entities_of(*texts: str) -> list[str]:
    """Entities of labeled texts as `type first-last`; words are counted over all texts."""
    words = [text.split() for text in texts]
    flat = [label for text in words for label in text]
    names = list(dict.fromkeys(flat))
    labels = EntityLabels.of(names)
    ids = np.array([names.index(label) for label in flat])
    found = labels.entities(ids, np.repeat(np.arange(len(words)), [len(text) for text in words]))
    return [f"{names[ids[first]].rpartition('-')[2]} {first}-{last}" for first, last, _ in found.T]


SCHEMES = {
    "BIO": ("B-X I-X O B-Y", ["X 0-1", "Y 3-3"]),
    "B begins an entity within one": ("B-X B-X I-X", ["X 0-0", "X 1-2"]),
    "IOB1, where I begins an entity": ("I-X I-X B-X O I-Y", ["X 0-1", "X 2-2", "Y 4-4"]),
    "I after O begins an entity": ("O I-X I-X", ["X 1-2"]),
    "I of another type begins an entity": ("B-X I-Y I-Y", ["X 0-0", "Y 1-2"]),
    "BIOES": ("B-X I-X E-X S-Y O", ["X 0-2", "Y 3-3"]),
    "BILOU": ("B-X I-X L-X U-Y O", ["X 0-2", "Y 3-3"]),
    "I after E begins an entity": ("B-X E-X I-X", ["X 0-1", "X 2-2"]),
    "E after E begins an entity": ("E-X E-X", ["X 0-0", "X 1-1"]),
    "I and E after S begin an entity": ("S-X I-X O U-X L-X", ["X 0-0", "X 1-1", "X 3-3", "X 4-4"]),
    "S within an entity ends it": ("B-X S-X I-X", ["X 0-0", "X 1-1", "X 2-2"]),
    "B without an end": ("B-X O B-Y", ["X 0-0", "Y 2-2"]),
    "types without prefixes": ("PER PER O LOC PER", ["PER 0-1", "LOC 3-3", "PER 4-4"]),
    "types that begin like O and a prefix": ("ORG ORG O Bar", ["ORG 0-1", "Bar 3-3"]),
    "a hyphen without a prefix": ("sub-X sub-X B-X", ["X 0-1", "X 2-2"]),
    "a type with a hyphen": ("B-a-X I-a-X I-b-X", ["X 0-1", "X 2-2"]),
    "a type with and without a prefix": ("B-X X I-X", ["X 0-2"]),
    "prefixes without a type": ("B I O I B", ["B 0-1", "I 3-3", "B 4-4"]),
    "only O": ("O O", []),
}


@pytest.mark.parametrize("case", SCHEMES)
def test_labels_of_every_scheme_are_decoded(case: str) -> None:
    labels, entities = SCHEMES[case]
    assert entities_of(labels) == entities


def test_an_entity_ends_with_its_text() -> None:
    assert entities_of("O B-X I-X", "I-X", "O X", "X") == ["X 1-2", "X 3-3", "X 5-5", "X 6-6"]


def spans_of_seqeval(labels: list[str]) -> list[tuple[str, int, int]]:
    """`seqeval.metrics.sequence_labeling.get_entities` of seqeval 1.2.2, for labels with a prefix, without warnings."""
    spans = []
    begin = 0
    for place, (before, label) in enumerate(pairwise(["O", *labels, "O"])):
        (prev_tag, prev_type), (tag, type_) = ((name[0], name[1:].split("-", 1)[-1] or "_") for name in (before, label))
        ended = prev_tag in "ES" or (prev_tag in "BI" and tag in "BSO") or (prev_tag != "O" and prev_type != type_)
        started = tag in "BS" or (prev_tag in "ESO" and tag in "EI") or (tag != "O" and prev_type != type_)
        if ended:
            spans.append((prev_type, begin, place - 1))
        if started:
            begin = place
    return spans


PREFIXED = [f"{prefix}{type_}" for prefix in "BIES" for type_ in ("", "-X", "-Y", "-a-b")]
TEXTS = st.lists(st.lists(st.tuples(*[st.sampled_from(["O", *PREFIXED])] * 2), min_size=1), min_size=1)


@given(TEXTS)
def test_entities_are_those_of_seqeval(texts: list[list[tuple[str, str]]]) -> None:
    names = ["O", *PREFIXED]
    rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    targets, predictions = (np.array([names.index(pair[which]) for text in texts for pair in text]) for which in (0, 1))
    found = entity_counts(predictions, targets, rows, EntityLabels.of(names), len(texts))
    for row, text in enumerate(texts):
        expected, predicted = (set(spans_of_seqeval([pair[which] for pair in text])) for which in (0, 1))
        assert found[:, row].tolist() == [len(expected & predicted), len(expected), len(predicted)]


@given(TEXTS)
def test_l_and_u_are_e_and_s(texts: list[list[tuple[str, str]]]) -> None:
    words = [[label for label, _ in text] for text in texts]
    other = [[label.replace("E", "L").replace("S", "U") for label in text] for text in words]
    assert [entity.split()[1] for entity in entities_of(*map(" ".join, other))] == [
        entity.split()[1] for entity in entities_of(*map(" ".join, words))
    ]


F1 = {
    # Targets, predictions, and F1 by hand: 2 found / (expected + predicted).
    "all": ("B-X I-X O B-Y", "B-X I-X O B-Y", 1.0),
    "a boundary is wrong": ("B-X I-X O B-Y", "B-X O O B-Y", 2 / 4),
    "a type is wrong": ("B-X I-X O B-Y", "B-Y I-Y O B-Y", 2 / 4),
    "the same span in another scheme": ("B-X I-X O S-Y", "I-X I-X O B-Y", 1.0),
    "one is divided": ("B-X I-X I-X O", "B-X B-X I-X O", 0.0),
    "one more is predicted": ("B-X O O", "B-X O B-Y", 2 / 3),
    "none is predicted": ("B-X O O", "O O O", 0.0),
    "there is none": ("O O O", "O O O", 0.0),
}


@pytest.mark.parametrize("case", F1)
def test_an_entity_is_found_if_all_of_its_words_and_its_type_are(case: str) -> None:
    targets, predictions, expected = F1[case]
    names = sorted({*targets.split(), *predictions.split()})
    ids: list[Any] = [np.array([names.index(label) for label in text.split()]) for text in (predictions, targets)]
    counts = entity_counts(*ids, np.zeros(len(ids[0]), np.int64), EntityLabels.of(names), 1)
    assert entity_f1(*counts[:, 0].tolist()) == pytest.approx(expected)


def test_many_types_are_one_figure() -> None:
    names = [f"{prefix}{number}" for number in range(2000) for prefix in ("B-", "I-")]
    ids = np.arange(len(names))
    counts = entity_counts(ids, ids, np.zeros(len(ids), np.int64), EntityLabels.of(names), 1)
    assert counts.tolist() == [[2000], [2000], [2000]]


@pytest.mark.parametrize(
    ("task", "labels", "headline"),
    [
        *((Task.TOKEN_CLASSIFICATION, ("O", f"{prefix}PER"), Metric.ENTITY_F1) for prefix in ENTITY_PREFIXES),
        (Task.TOKEN_CLASSIFICATION, ("NOUN", "B-PER"), Metric.ENTITY_F1),
        (Task.TOKEN_CLASSIFICATION, ("NOUN", "VERB"), Metric.MACRO_F1),
        (Task.TOKEN_CLASSIFICATION, ("O", "PER", "sub-PER"), Metric.MACRO_F1),
        (Task.SEQUENCE_CLASSIFICATION, ("B-1", "I-2"), Metric.ACCURACY),
        (Task.CAUSAL_LM, (), Metric.PERPLEXITY),
    ],
)
def test_entities_decide_the_comparison_where_a_label_has_a_prefix(
    task: Task, labels: tuple[str, ...], headline: Metric
) -> None:
    assert TASK_SUPPORT[task].headline_for(labels) is headline
