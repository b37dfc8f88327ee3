"""Which rank has which elements of which parameter, and load-time resharding to another partition. Pure.

A rank's optimizer state is three fp32 arrays of equal size: the parameters, and Adam's first and second moments.
Within an array, the rank's fragments are contiguous. In storage these bytes are split into blobs of equal size.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from finetune_api.trainer_config import Message

from ...errors import BadConfigError

OPTIMIZER_STATE_ARRAYS = 3
"""Parameters, exp_avg, exp_avg_sq."""

ELEMENT_BYTES = 4


class Fragment(Message):
    """A contiguous range of elements of one flattened parameter."""

    name: str
    group: int
    """Index of the optimizer's parameter group."""
    start: int
    """First element, counted in the flattened parameter."""
    numel: int
    shape: tuple[int, ...]
    """Shape of the whole parameter."""


class Layout(Message):
    """The fragments of one rank, in the order of its arrays."""

    fragments: tuple[Fragment, ...]

    @property
    def elements(self) -> int:
        """Number of elements of one array."""
        return sum(fragment.numel for fragment in self.fragments)

    def bytes(self, arrays: int = OPTIMIZER_STATE_ARRAYS) -> int:
        """Size of the first `arrays` arrays in bytes."""
        return arrays * self.elements * ELEMENT_BYTES

    def offsets(self) -> list[int]:
        """Start of each fragment within an array, in elements."""
        found, offset = [], 0
        for fragment in self.fragments:
            found.append(offset)
            offset += fragment.numel
        return found


@dataclass(frozen=True)
class Copy:
    """`numel` elements to copy from an array of a source to the same array of the wanted layout."""

    source: int
    """Index of the source layout."""
    source_fragment: int
    fragment: int
    """Index of the wanted fragment."""
    at: int
    """First element in the source's array."""
    to: int
    """First element in the wanted array."""
    numel: int


@dataclass(frozen=True)
class Piece:
    """Bytes to copy from one blob of a source to the wanted arrays."""

    at: int
    """First byte in the blob."""
    to: int
    """First byte in the wanted arrays."""
    size: int


def check_parameters(sources: Sequence[Layout], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise BadConfigError if a source has a parameter that is not trained now, or that has another shape now."""
    for source in sources:
        for fragment in source.fragments:
            shape = shapes.get(fragment.name)
            if shape is None:
                raise BadConfigError(f"the checkpoint has {fragment.name}, which is not trained now")
            if shape != fragment.shape:
                raise BadConfigError(f"{fragment.name} has shape {shape} now, but {fragment.shape} in the checkpoint")


def plan(wanted: Layout, sources: Sequence[Layout]) -> list[Copy]:
    """Return the copies that fill `wanted`, each of its elements exactly once, in its order.

    Raises BadConfigError if elements are in no source (a hole) or if a parameter is in another group there.
    """
    index = _index(sources)
    copies: list[Copy] = []
    for number, (fragment, offset) in enumerate(zip(wanted.fragments, wanted.offsets(), strict=True)):
        position, end = fragment.start, fragment.start + fragment.numel
        for held in index[fragment.name]:
            found = held.fragment
            stop = min(found.start + found.numel, end)
            if not found.start <= position < stop:
                continue
            if found.group != fragment.group:
                raise BadConfigError(
                    f"{fragment.name} is in parameter group {fragment.group} now, but {found.group} in the checkpoint"
                )
            at, to = held.offset + position - found.start, offset + position - fragment.start
            copies.append(Copy(held.source, held.number, number, at, to, stop - position))
            position = stop
        if position < end:
            raise BadConfigError(
                f"the checkpoint does not have elements {position} to {end} of {fragment.name}",
                advice="a checkpoint can only be resumed with the same model and the same trained parameters",
            )
    return copies


@dataclass(frozen=True)
class _Held:
    source: int
    number: int
    offset: int
    fragment: Fragment


def _index(sources: Sequence[Layout]) -> defaultdict[str, list[_Held]]:
    """Parameter name -> its fragments, in the order of the elements."""
    index: defaultdict[str, list[_Held]] = defaultdict(list)
    for source, layout in enumerate(sources):
        for number, (fragment, offset) in enumerate(zip(layout.fragments, layout.offsets(), strict=True)):
            index[fragment.name].append(_Held(source, number, offset, fragment))
    for held in index.values():
        held.sort(key=lambda each: each.fragment.start)
    return index


def pieces(
    copies: Sequence[Copy], wanted: Layout, sources: Sequence[Layout], *, arrays: int, blob_bytes: int
) -> dict[tuple[int, int], list[Piece]]:
    """What to read from each blob: {(source, blob number): pieces}. Adjacent copies are merged before they are
    split."""
    found: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    for source, run in _runs(copies, wanted, sources, arrays):
        at, to, end = run.at, run.to, run.at + run.size
        while at < end:
            number, inside = divmod(at, blob_bytes)
            size = min(blob_bytes - inside, end - at)
            found[source, number].append(Piece(inside, to, size))
            at, to = at + size, to + size
    return dict(found)


def _runs(
    copies: Sequence[Copy], wanted: Layout, sources: Sequence[Layout], arrays: int
) -> Iterator[tuple[int, Piece]]:
    """The longest byte ranges that are contiguous on both sides, across fragments and arrays."""
    current: tuple[int, Piece] | None = None
    elements = [source.elements for source in sources]
    for array, copy in product(range(arrays), copies):
        piece = Piece(
            at=(array * elements[copy.source] + copy.at) * ELEMENT_BYTES,
            to=(array * wanted.elements + copy.to) * ELEMENT_BYTES,
            size=copy.numel * ELEMENT_BYTES,
        )
        if current is None:
            current = copy.source, piece
        elif current[0] == copy.source and _follows(current[1], piece):
            current = copy.source, replace(current[1], size=current[1].size + piece.size)
        else:
            yield current
            current = copy.source, piece
    if current is not None:
        yield current


def _follows(run: Piece, piece: Piece) -> bool:
    """Whether the piece starts where the run ends, on both sides."""
    return (run.at + run.size, run.to + run.size) == (piece.at, piece.to)


def blob_sizes(total: int, blob_bytes: int) -> list[int]:
    """Sizes of the blobs that `total` bytes are split into."""
    return [min(blob_bytes, total - at) for at in range(0, total, blob_bytes)]
