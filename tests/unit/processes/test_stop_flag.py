import signal
from collections.abc import Iterator

import pytest

from finetune_trainer.stop import install_stop_flag


@pytest.fixture(autouse=True)
def restored_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_sets_the_flag_and_nothing_else() -> None:
    flag = install_stop_flag()
    assert not flag.requested
    signal.raise_signal(signal.SIGTERM)
    assert flag.requested


def test_a_sigterm_before_the_handler_is_not_lost() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.raise_signal(signal.SIGTERM)
    assert install_stop_flag().requested
