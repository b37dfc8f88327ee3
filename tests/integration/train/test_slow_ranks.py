"""Ranks wait for a slow rank longer than the timeout of their collectives, but not for a dead one."""

import time

from finetune_api.exit_codes import ExitCode
from training_harness import TrainingHarness

SHORT = {"training": {"maxSteps": 2, "epochs": None}}


def test_a_slow_download_and_a_slow_export_may_exceed_the_timeout_of_collectives(harness: TrainingHarness) -> None:
    config = harness.config("slow", kind="llama", zero=3, **SHORT)
    ended = harness.run(config, target="train_ranks:train_slow_rank", TEST_GROUP_TIMEOUT="8", TEST_SLOW="9")
    assert ended.exit_codes == [0, 0], ended.output
    assert harness.store.exists(f"{config.model_uri}/model.safetensors")


def test_ranks_that_wait_notice_immediately_that_a_rank_died_during_its_export(harness: TrainingHarness) -> None:
    config = harness.config("dead", kind="llama", **SHORT)
    started = harness.start(
        config, target="train_ranks:train_slow_rank", TEST_GROUP_TIMEOUT="600", TEST_SLOW="0.5", TEST_DIES="yes"
    )
    assert started.ranks[0].wait(120) == -9
    died = time.monotonic()
    ended = started.ended(60)
    assert time.monotonic() - died < 20
    assert ended.exit_codes == [-9, ExitCode.INTERNAL_ERROR]
