"""A process takes only the uploader that it has forked itself."""

import multiprocessing

from finetune_trainer.checkpoint.upload import standby


def test_the_uploader_of_the_parent_is_not_taken() -> None:
    """Neither its exit nor its environment would be those of a child."""
    standby.fork_uploader()
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(standby.take_uploader() is None))
    child.start()
    assert receiver.recv()
    child.join()
    own = standby.take_uploader()
    assert own is not None
    own.kill()
    own.wait()
    own.channel.close()
    assert standby.take_uploader() is None
