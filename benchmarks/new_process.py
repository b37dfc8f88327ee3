"""Measurements in processes of their own."""

import multiprocessing as mp
from collections.abc import Callable
from typing import Any

Figures = tuple[int, float, float]
"""Bytes, CPU seconds and loss."""


def in_new_process(measure: Callable[..., None], *arguments: Any) -> Figures:
    """Return what `measure` puts into the queue that is its last argument.

    In a new process, because the peak of a process never falls.
    """
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    child = context.Process(target=measure, args=(*arguments, results))
    child.start()
    found: Figures = results.get()
    child.join()
    return found
