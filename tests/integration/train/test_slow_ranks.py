"""Ranks wait for one that is slow, however short the time-out of their collectives; not for one that is dead."""

import time

from finetune_api.exit_codes import ExitCode
from train_lab import Lab

SHORT = {"training": {"maxSteps": 2, "epochs": None}}


def test_a_slow_download_and_a_slow_export_outlast_the_time_out_of_collectives(lab: Lab) -> None:
    config = lab.config("slow", kind="llama", zero=3, **SHORT)
    ended = lab.run(config, target="train_ranks:train_slow_rank", TEST_GROUP_TIMEOUT="8", TEST_SLOW="9")
    assert ended.exit_codes == [0, 0], ended.output
    assert lab.store.exists(f"{config.model_uri}/model.safetensors")


def test_a_rank_that_dies_during_its_export_is_noticed_at_once_by_those_who_wait(lab: Lab) -> None:
    config = lab.config("dead", kind="llama", **SHORT)
    started = lab.start(
        config, target="train_ranks:train_slow_rank", TEST_GROUP_TIMEOUT="600", TEST_SLOW="0.5", TEST_DIES="yes"
    )
    assert started.ranks[0].wait(120) == -9
    died = time.monotonic()
    ended = started.ended(60)
    assert time.monotonic() - died < 20
    assert ended.exit_codes == [-9, ExitCode.INTERNAL_ERROR]
