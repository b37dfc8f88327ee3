import pytest

from finetune_api.constants import Env, Stage
from finetune_api.trainer_config import World
from finetune_trainer.errors import UsageError
from finetune_trainer.supervisor.supervisor import rank_environments
from process_support import make_config


def environments(stage: Stage, world: World, **environ: str) -> list[tuple[int, dict[str, str]]]:
    config = make_config(stage, 1).model_copy(update={"world": world})
    return rank_environments(config, environ, started=1.5)


def test_the_second_pod_of_two_has_the_upper_half_of_the_ranks() -> None:
    given = {Env.NODE_RANK: "1", Env.MASTER_ADDR: "job-0.job", "MARK": "kept"}
    ranks = environments(Stage.TRAIN, World(nodes=2, processes_per_node=2), **given)
    assert [rank for rank, _ in ranks] == [2, 3]
    environ = ranks[1][1]
    assert environ.items() >= {
        "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "job-0.job",
        "MASTER_PORT": "29500", "DS_ACCELERATOR": "cpu", "FINETUNE_STARTED_TIME": "1.500", "MARK": "kept",
    }.items()  # fmt: skip


def test_several_pods_need_the_address_of_rank_0() -> None:
    with pytest.raises(UsageError, match="environment variable MASTER_ADDR is missing"):
        environments(Stage.TRAIN, World(nodes=2))


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.EVALUATE])
def test_only_training_has_more_than_one_process(stage: Stage) -> None:
    ((rank, environ),) = environments(stage, World(nodes=2, processes_per_node=4, gpus=True), FINETUNE_NODE_RANK="1")
    assert rank == 0
    assert (environ["WORLD_SIZE"], environ["DS_ACCELERATOR"]) == ("1", "cuda")
    assert environ["MASTER_PORT"] == "29500"


def test_threads_are_set_by_the_operator_or_a_fair_share_of_the_cores() -> None:
    assert environments(Stage.TRAIN, World(), OMP_NUM_THREADS="7")[0][1]["OMP_NUM_THREADS"] == "7"
    shares = environments(Stage.TRAIN, World(processes_per_node=1024))
    assert {environ["OMP_NUM_THREADS"] for _, environ in shares} == {"1"}
