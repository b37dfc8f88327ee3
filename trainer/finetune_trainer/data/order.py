"""The order in which an epoch visits the rows, and what grouping by length saves. Pure.

The order is a deterministic function of its arguments: random bits come from Philox, whose stream numpy guarantees,
and lengths are compared as integers, so every machine and every restart computes the same order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.trainer_config import BatchPlan, TrainerConfig

Lengths = NDArray[np.int32]
Order = NDArray[np.int64]

_SIGNIFICANT_BITS = 8
"""Lengths that agree in their leading 8 bits (within 0.8 %) count as equal and are shuffled across epochs."""
_CLASS_BITS = 12
"""Enough for the classes of lengths up to 2**20, the maximum of `spec.data.maxLength`."""

_SAMPLED = 2**17
"""Number of rows that are sampled to estimate the cost of an epoch."""


def epoch_order(lengths: Lengths, *, seed: int, epoch: int, batch_size: int, grouped: bool) -> Order:
    """A permutation of the row numbers, different for every epoch; O(n log n).

    `grouped`: every `batch_size` consecutive rows (a global batch) consist of `strata_of(batch_size)` groups of rows
    with similar lengths, one from each stratum of the dataset, longest first. Each group is padded separately, so
    there is little padding, and every batch still has short and long rows. Length correlates with content (short news
    are about earnings), so batches of one length would be batches of few classes. Batches come in random order, except
    that the longest rows of every stratum come first, so that an out-of-memory error occurs at once.
    """
    bits = random_bits(seed, epoch)
    if not grouped:
        return random_order(bits, len(lengths))
    descending = _sorted_rows(_random(bits, len(lengths)), _CLASS_BITS, _length_class(lengths))[::-1]
    return _longest_first(_stratified_batches(descending, batch_size, bits), lengths, batch_size)


def random_bits(seed: int, epoch: int) -> np.random.Philox:
    """The random bits of an epoch."""
    return np.random.Philox(key=[seed, epoch])


def random_order(bits: np.random.Philox, count: int) -> Order:
    """A random permutation of `count` numbers."""
    return _sorted_rows(_random(bits, count), 0)


def _random(bits: np.random.Philox, count: int) -> NDArray[np.uint64]:
    return np.asarray(bits.random_raw(count), dtype=np.uint64)


def _sorted_rows(randoms: NDArray[np.uint64], class_bits: int, classes: NDArray[np.uint64] | None = None) -> Order:
    """Row numbers sorted by class, in random order within a class.

    Class, random bits and row number share one 64-bit key. Keys are therefore distinct, so every sorting algorithm
    gives the same order, and sorting values is several times as fast as sorting indices.
    """
    row_bits = max(1, len(randoms).bit_length())
    keys = (randoms >> np.uint64(class_bits + row_bits)) << np.uint64(row_bits)
    keys |= np.arange(len(randoms), dtype=np.uint64)
    if classes is not None:
        keys |= classes << np.uint64(64 - class_bits)
    keys.sort()
    return (keys & np.uint64((1 << row_bits) - 1)).astype(np.int64)


def _length_class(lengths: Lengths) -> NDArray[np.uint64]:
    """Integers that increase with the length and are equal for lengths that agree in their leading bits."""
    _, bit_length = np.frexp(lengths.astype(np.float64))  # exact for integers
    cleared = np.maximum(bit_length - _SIGNIFICANT_BITS, 0).astype(np.int64)
    leading = lengths.astype(np.int64) >> cleared
    return np.asarray(leading + (cleared << (_SIGNIFICANT_BITS - 1)), dtype=np.uint64)


def _stratified_batches(rows: Order, batch_size: int, bits: np.random.Philox) -> Order:
    """Rows in descending length -> full batches with one group from every stratum, then the incomplete batch.

    The incomplete batch takes its share of every stratum from a random position.
    """
    batches, rest = divmod(len(rows), batch_size)
    if batches == 0:
        return rows
    strata = strata_of(batch_size)
    groups, incomplete, start = [], [], 0
    for size, extra in zip(_shares(batch_size, strata), _shares(rest, strata), strict=True):
        stratum = rows[start : start + batches * size + extra]
        start += len(stratum)
        cut = (1 + int(bits.random_raw()) % batches) * size
        incomplete.append(stratum[cut : cut + extra])
        whole = np.concatenate([stratum[:cut], stratum[cut + extra :]]).reshape(batches, size)
        later = 1 + random_order(bits, batches - 1)
        groups.append(np.concatenate([whole[:1], whole[later]]))
    return np.concatenate([np.concatenate(groups, axis=1).reshape(-1), *incomplete])


def _shares(total: int, parts: int) -> list[int]:
    """Divide a total into integers that differ by at most one."""
    return [total * (part + 1) // parts - total * part // parts for part in range(parts)]


def strata_of(batch_size: int) -> int:
    """Groups of similar length in a global batch: the smallest divisor of its size that is at least its square root.

    With S groups of B / S rows of equal length, the variance of a batch's mean length is `within / S`, where `within`
    is the variance inside a stratum; that of a random batch is `total / B`. With S = sqrt(B) the former is about half
    of the latter for batches from 8 to 256 rows: grouping does not reduce the variety within a batch.
    """
    return next(size for size in range(1, batch_size + 1) if batch_size % size == 0 and size**2 >= batch_size)


def _longest_first(rows: Order, lengths: Lengths, batch_size: int) -> Order:
    """Sort each batch by length, longest first, including the incomplete one."""
    row_bits = max(1, len(rows).bit_length())
    keys = (lengths[rows].astype(np.int64) << row_bits) | rows
    whole = len(rows) // batch_size * batch_size
    keys[:whole].reshape(-1, batch_size).sort(axis=1)
    keys[whole:].sort()
    descending = np.concatenate([keys[:whole].reshape(-1, batch_size)[:, ::-1].reshape(-1), keys[whole:][::-1]])
    return np.asarray(descending & ((1 << row_bits) - 1))


def padded_tokens(lengths: Lengths, batch_size: int) -> int:
    """Tokens of all batches including padding, for rows in the given order."""
    if len(lengths) == 0:
        return 0
    starts = np.arange(0, len(lengths), batch_size)
    sizes = np.diff(np.append(starts, len(lengths)))
    return int((np.maximum.reduceat(lengths.astype(np.int64), starts) * sizes).sum())


def pass_tokens(parameters: int, *, gpu: bool) -> float:
    """Fixed cost of a forward and backward pass, in tokens.

    On a CPU 60 to 430, measured with BERT-base, MiniLM and a model of two small layers on one core. On a GPU it is an
    estimate: launching the kernels of a layer takes about 1 ms, a token takes 6 FLOP per parameter at 300 TFLOP/s, so
    5,800 tokens for BERT-base and 70 for a model of 7 billion parameters.
    """
    return 5e11 / max(parameters, 1) if gpu else 80.0


@dataclass(frozen=True)
class Grouping:
    """How micro-batches are padded, and what that saves."""

    groups: int
    """Groups per micro-batch; each is padded separately and computed in its own pass."""
    saved: float
    """Share of the cost of random batches that is saved; negative if grouping costs more."""


def cheapest_grouping(lengths: Lengths, batch: BatchPlan, *, seed: int, fixed: float) -> Grouping:
    """The cheapest number of padding groups for rows grouped by length, and what it saves.

    More groups need less padding but more passes; each pass costs `fixed` tokens in addition. Processes wait for each
    other, so the cost of a pass is the longest row of the groups that all processes compute at the same time.
    Deterministic: every process and every restart gets the same result.
    """
    sample = lengths[:: max(1, len(lengths) // _SAMPLED)]
    random, grouped = (
        sample[epoch_order(sample, seed=seed, epoch=0, batch_size=batch.global_size, grouped=grouped)]
        for grouped in (False, True)
    )
    together = batch.global_size // batch.accumulation
    processes = together // batch.micro_size
    passes = -(-len(sample) // together)

    def cost(ordered: Lengths, groups: int) -> float:
        return padded_tokens(ordered, together // groups) / processes + passes * groups * fixed

    without = cost(random, 1)
    at_most = strata_of(batch.global_size)
    counts = [groups for groups in range(1, at_most + 1) if batch.micro_size % groups == 0]
    best = min(counts, key=lambda groups: cost(grouped, groups))
    return Grouping(best, saved=1.0 - cost(grouped, best) / without if without else 0.0)


def grouping_of(config: TrainerConfig, lengths: Lengths, parameters: int) -> Grouping:
    """The cheapest grouping of a job's rows, for a model with `parameters` parameters."""
    fixed = pass_tokens(parameters, gpu=config.spec.workers.gpus_per_node > 0)
    return cheapest_grouping(lengths, config.batch, seed=config.spec.training.seed, fixed=fixed)
