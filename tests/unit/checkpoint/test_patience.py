from finetune_trainer.checkpoint import async_saver
from finetune_trainer.checkpoint.upload import uploader
from finetune_trainer.store import client


def test_a_required_save_waits_longer_than_the_timeout_of_a_request() -> None:
    """A new uploader, started after another one died, reports nothing before its first request has ended."""
    silent = client.READ_SECONDS * uploader.RETRY.attempts_per_request
    assert 2 * silent + uploader.RETRY.total_seconds < async_saver.STORAGE_ERROR_SECONDS
