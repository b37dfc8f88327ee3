"""What `python -m finetune_operator network-policy` prints, and arguments that `run` refuses."""

import pytest
from ruamel.yaml import YAML

from factories import make_job
from finetune_api import constants
from finetune_api.validation import parse_job
from finetune_operator.__main__ import main
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings
from operator_process import NAME, installation


@pytest.mark.parametrize("argument", ["--run-as-user=0", "--run-as-user=me", "--ephemeral-storage=much"])
def test_a_setting_that_no_pod_could_have_is_refused(capsys: pytest.CaptureFixture[str], argument: str) -> None:
    with pytest.raises(SystemExit):
        main(["run", argument])
    assert "must be" in capsys.readouterr().err


def test_the_network_policy_admits_trainer_pods_and_the_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network-policy", "--namespace=tuning"]) == 0
    policy = YAML(typ="safe", pure=True).load(capsys.readouterr().out)
    job = parse_job(make_job(workers={"nodes": 2}))
    pods = [
        manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in render_all(job, OperatorSettings())
        if manifest["kind"] == "Job"
    ]
    peers, operator = policy["spec"]["ingress"]
    for selector in (policy["spec"]["podSelector"], peers["from"][0]["podSelector"]):
        assert all(selector["matchLabels"].items() <= labels.items() for labels in pods)
    (source,) = operator["from"]
    deployed = installation()["Deployment", NAME]["spec"]["template"]["metadata"]["labels"]
    assert source["podSelector"]["matchLabels"].items() <= deployed.items()
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "tuning"}
    assert operator["ports"] == [{"protocol": "TCP", "port": constants.PROGRESS_PORT}]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
