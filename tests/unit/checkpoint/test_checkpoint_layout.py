"""Any partition of the parameters can be assembled from any other, without gaps, overlaps or mix-ups."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.checkpoint.format.layout import (
    Fragment,
    Layout,
    blob_sizes,
    check_parameters,
    pieces,
    plan,
)
from finetune_trainer.errors import BadConfigError

Shapes = dict[str, int]
OPTIMIZER_STATE_ARRAYS = 3

shapes = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1)


@st.composite
def partitions(draw: st.DrawFn, sizes: Shapes) -> list[Layout]:
    """1 to 4 ranks; every parameter is split at random positions, and each part goes to a random rank, in random
    order."""
    ranks: list[list[Fragment]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for group, (name, numel) in enumerate(sizes.items()):
        cuts = sorted({0, numel, *draw(st.lists(st.integers(0, numel), max_size=4))})
        for start, stop in pairwise(cuts):
            fragment = Fragment(name=name, group=group, start=start, numel=stop - start, shape=(numel,))
            draw(st.sampled_from(ranks)).append(fragment)
    return [Layout(fragments=tuple(draw(st.permutations(rank)))) for rank in ranks]


def value(name: str, array: int, element: int) -> float:
    return float(ord(name) * 1000 + array * 100 + element)


def filled(layout: Layout, arrays: int) -> bytes:
    """Contents of a rank with this layout, if every element contained its own position."""
    values = [
        value(fragment.name, array, fragment.start + index)
        for array in range(arrays)
        for fragment in layout.fragments
        for index in range(fragment.numel)
    ]
    return np.array(values, dtype=np.float32).tobytes()


@given(st.data(), st.sampled_from([1, OPTIMIZER_STATE_ARRAYS]), st.sampled_from([4, 12, 64, 4096]))
def test_every_element_is_copied_to_its_position(data: st.DataObject, arrays: int, blob_bytes: int) -> None:
    sizes = data.draw(shapes)
    sources, targets = data.draw(partitions(sizes)), data.draw(partitions(sizes))
    stored = [filled(source, OPTIMIZER_STATE_ARRAYS) for source in sources]
    for wanted in targets:
        copies = plan(wanted, sources)
        found = bytearray(wanted.bytes(arrays))
        written = 0
        for (source, number), parts in pieces(copies, wanted, sources, arrays=arrays, blob_bytes=blob_bytes).items():
            blob = stored[source][number * blob_bytes : (number + 1) * blob_bytes]
            for piece in parts:
                assert piece.at + piece.size <= len(blob)
                found[piece.to : piece.to + piece.size] = blob[piece.at : piece.at + piece.size]
                written += piece.size
        assert bytes(found) == filled(wanted, arrays)
        assert written == len(found)


@given(st.data(), st.sampled_from([16, 64, 4096]))
def test_the_same_layout_is_read_in_whole_blobs(data: st.DataObject, blob_bytes: int) -> None:
    layout = data.draw(partitions(data.draw(shapes)))[0]
    found = pieces(plan(layout, [layout]), layout, [layout], arrays=OPTIMIZER_STATE_ARRAYS, blob_bytes=blob_bytes)
    sizes = blob_sizes(layout.bytes(), blob_bytes)
    assert {number: [piece.size for piece in parts] for (_, number), parts in found.items()} == {
        number: [size] for number, size in enumerate(sizes)
    }


@given(st.data())
def test_a_missing_fragment_is_detected(data: st.DataObject) -> None:
    sizes = data.draw(shapes)
    sources = data.draw(partitions(sizes))
    lost = data.draw(st.sampled_from([fragment for source in sources for fragment in source.fragments]))
    rest = [
        Layout(fragments=tuple(fragment for fragment in source.fragments if fragment is not lost)) for source in sources
    ]
    everything = Layout(
        fragments=tuple(
            Fragment(name=name, group=group, start=0, numel=numel, shape=(numel,))
            for group, (name, numel) in enumerate(sizes.items())
        )
    )
    with pytest.raises(BadConfigError, match=f"does not have elements {lost.start} to .* of {lost.name}"):
        plan(everything, rest)


def one(*, group: int = 0, shape: tuple[int, ...] = (2, 3)) -> Layout:
    return Layout(fragments=(Fragment(name="w", group=group, start=0, numel=6, shape=shape),))


def test_a_parameter_in_another_group_is_rejected() -> None:
    with pytest.raises(BadConfigError, match="w is in parameter group 0 now, but 1 in the checkpoint"):
        plan(one(), [one(group=1)])


def test_a_parameter_with_another_shape_is_rejected() -> None:
    with pytest.raises(BadConfigError, match=r"w has shape \(3, 2\) now, but \(2, 3\) in the checkpoint"):
        check_parameters([one()], {"w": (3, 2)})


def test_a_parameter_that_is_not_trained_now_is_rejected() -> None:
    with pytest.raises(BadConfigError, match="has w, which is not trained now"):
        check_parameters([one()], {"v": (2, 3)})


@pytest.mark.parametrize(("total", "sizes"), [(0, []), (3, [3]), (8, [4, 4]), (9, [4, 4, 1])])
def test_all_blobs_but_the_last_are_full(total: int, sizes: list[int]) -> None:
    assert blob_sizes(total, 4) == sizes
