"""The queue: each key once, never two workers on one key, and longer delays after each failure."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from finetune_operator.controller.queue import KeyedQueue


def play(scenario: Callable[[KeyedQueue[str]], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(KeyedQueue(first_backoff_seconds=0.01, max_backoff_seconds=0.05))

    asyncio.run(asyncio.wait_for(run(), 5))


async def taken(queue: KeyedQueue[str]) -> list[str]:
    """All keys that are available without waiting."""
    found = []
    while len(queue):
        found.append(await queue.get())
    return found


def test_a_key_is_queued_once_in_order() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        for key in ("a", "b", "a", "c", "b"):
            queue.add(key)
        assert await taken(queue) == ["a", "b", "c"]

    play(scenario)


def test_a_key_in_process_is_returned_again_only_after_it_is_done() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert (len(queue), queue.working) == (0, 1)
        queue.done("a")
        assert await taken(queue) == ["a"]
        queue.done("a")
        assert (len(queue), queue.working) == (0, 0)

    play(scenario)


def test_the_earlier_of_two_requests_counts() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        queue.add_after("a", 30.0)
        queue.add_after("a", 0.01)
        queue.add_after("a", 20.0)
        assert await queue.get() == "a"
        queue.done("a")
        await asyncio.sleep(0.02)
        assert len(queue) == 0

    play(scenario)


def test_an_immediate_request_replaces_a_later_one() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        queue.add_after("a", 0.02)
        queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        waiting.cancel()

    play(scenario)


def test_a_request_for_a_key_in_process_is_kept() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        queue.add("a")
        await queue.get()
        queue.add_after("a", 0.01)
        queue.done("a")
        assert await queue.get() == "a"

    play(scenario)


def test_delays_after_failures_increase_to_a_limit_until_a_success() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        assert [queue.retry("a") for _ in range(5)] == pytest.approx([0.01, 0.02, 0.04, 0.05, 0.05])
        assert queue.retry("a", at_least=2.0) == 2.0
        queue.forget("a")
        assert queue.retry("a") == pytest.approx(0.01)

    play(scenario)


def test_the_end_of_processing_a_key_can_be_awaited() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        await queue.released("a")  # not in process
        queue.add("a")
        await queue.released("a")  # not in process yet
        await queue.get()
        waiting = asyncio.create_task(queue.released("a"))
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.done("a")
        await waiting

    play(scenario)


def test_a_waiting_worker_wakes_up_for_a_new_key() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        for key in ("a", "b", "c"):
            queue.add(key)
        assert sorted(await asyncio.gather(*waiting)) == ["a", "b", "c"]

    play(scenario)


def test_the_age_of_the_oldest_key_is_known() -> None:
    async def scenario(queue: KeyedQueue[str]) -> None:
        assert queue.oldest_seconds() == 0.0
        queue.add("a")
        await asyncio.sleep(0.02)
        queue.add("b")
        assert queue.oldest_seconds() >= 0.02

    play(scenario)
