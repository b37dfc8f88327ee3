from finetune_trainer.checkpoint import saving
from finetune_trainer.checkpoint.upload import uploader
from finetune_trainer.store import client


def test_who_needs_a_save_waits_longer_than_storage_may_say_nothing_to_a_request() -> None:
    """An uploader that is new, after another one's death, tells of nothing before its first request has ended."""
    silent = client.READ_SECONDS * uploader.RETRY.attempts_per_request
    assert 2 * silent + uploader.RETRY.total_seconds < saving.TROUBLE_SECONDS
