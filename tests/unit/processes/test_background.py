"""Actions in the background."""

import threading

import pytest

from finetune_trainer.background import Background


def test_the_action_runs_while_the_caller_continues() -> None:
    asked, answered = threading.Event(), threading.Event()

    def action() -> str:
        asked.set()
        assert answered.wait(timeout=30)
        return "model"

    started = Background(action)
    assert asked.wait(timeout=30)
    answered.set()
    assert started.result() == "model"
    assert started.result() == "model"


def test_the_error_of_the_action_is_raised_where_its_result_is_needed() -> None:
    def action() -> str:
        raise OSError("unreachable")

    started = Background(action)
    with pytest.raises(OSError, match="unreachable"):
        started.result()
