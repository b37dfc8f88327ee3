"""Jobs cannot set the variables that operator and supervisor set, neither for the operator nor for the API server."""

import pytest

from factories import make_job
from finetune_api.constants import RESERVED_PREFIX, RESERVED_VARIABLES, Env, Stage
from finetune_api.crd import CEL_RULES
from finetune_api.rules import is_reserved
from finetune_api.validation import InvalidJobError, parse_job
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings
from finetune_trainer.supervisor.supervisor import rank_environments

FULL = {
    "workers": {"nodes": 2, "cache": {"claimName": "cache"}, "resources": {"requests": {"cpu": "2"}}},
    "storage": {"credentialsSecret": "storage"},
}
"""A job whose pods get every variable."""


def test_all_variables_of_a_pod_except_the_threads_are_reserved() -> None:
    jobs = [child for child in render_all(parse_job(make_job(**FULL)), OperatorSettings()) if child["kind"] == "Job"]
    containers = [job["spec"]["template"]["spec"]["containers"][0] for job in jobs]
    names = {entry["name"] for container in containers for entry in container["env"]}
    assert len(names) > 10
    assert {name for name in names if not is_reserved(name)} == {Env.OMP_NUM_THREADS}


def test_all_variables_of_a_rank_except_the_threads_are_reserved() -> None:
    config = stage_config(parse_job(make_job(workers={"nodes": 2})), 1, Stage.TRAIN, 1, OperatorSettings().storage)
    environment = {Env.NODE_RANK: "1", Env.MASTER_ADDR: "host"}
    ((_, rank),) = rank_environments(config, environment, started=0.0)
    assert {name for name in rank if not is_reserved(name)} == {Env.OMP_NUM_THREADS}
    assert {name for name in Env if not is_reserved(name)} == {Env.OMP_NUM_THREADS}


@pytest.mark.parametrize("name", [*sorted(RESERVED_VARIABLES), f"{RESERVED_PREFIX}CACHE", f"{RESERVED_PREFIX}NEW"])
def test_a_job_that_sets_one_is_refused(name: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_job(make_job(workers={"env": [{"name": "A"}, {"name": name, "value": "x"}]}))
    assert str(refused.value) == (
        f"spec.workers.env[1].name must not be {name}, which the operator sets; remove the entry"
    )


def test_the_api_server_gets_the_same_names() -> None:
    ((rule, message),) = [entry for entry in CEL_RULES["spec.workers.env[]"] if "self.name" in entry[0]]
    assert all(f"'{name}'" in rule and name in message for name in RESERVED_VARIABLES)
    assert f"startsWith('{RESERVED_PREFIX}')" in rule


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "NCCL_DEBUG", "HF_TOKEN", "HOMEPAGE", "MY_FINETUNE_VARIABLE"])
def test_other_variables_can_be_set(name: str) -> None:
    parse_job(make_job(workers={"env": [{"name": name, "value": "1"}]}))
