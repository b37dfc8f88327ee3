"""Votes of real ranks: one collective, and the same result on all ranks."""

from dataclasses import asdict
from typing import Any


def voted(rank: int, size: int) -> dict[str, Any]:
    import torch.distributed as dist

    from finetune_trainer.train.votes import StepVotes

    calls, all_reduce = [], dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    votes = StepVotes(
        stop=rank == 1,
        save=rank == 0,
        diverged=False,
        tokens=100 + rank,
        part_stored=rank == 0,
        fenced=False,
        upload_error_changed=rank == 2,
        too_stale=False,
    )
    return {"votes": asdict(votes.all_reduce()), "collectives": len(calls)}


def test_the_votes_of_three_ranks_are_reduced_by_one_collective(run_world: Any) -> None:
    expected = {
        "stop": True,
        "save": True,
        "diverged": False,
        "tokens": 303.0,
        "part_stored": False,
        "fenced": False,
        "upload_error_changed": True,
        "too_stale": False,
    }
    assert run_world(voted, 3) == [{"votes": expected, "collectives": 1}] * 3
