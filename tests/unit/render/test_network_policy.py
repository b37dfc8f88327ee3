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
from process_support import ROOT


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


def test_the_network_policy_says_that_it_does_not_separate_jobs_and_what_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["network-policy"])
    text = capsys.readouterr().out
    peers = YAML(typ="safe", pure=True).load(text)["spec"]["ingress"][0]["from"]
    for name in ("mine", "theirs"):
        (pod, *_) = (
            manifest["spec"]["template"]["metadata"]["labels"]
            for manifest in render_all(parse_job(make_job(name)), OperatorSettings())
            if manifest["kind"] == "Job"
        )
        assert peers[0]["podSelector"]["matchLabels"].items() <= pod.items(), "the comment is about this"
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))
    assert "every trainer pod of the namespace may connect to all ports of every other one" in comment
    value, flag = "networkPolicies.jobs.create", "--network-policies-from"
    assert f"{value} (flag {flag})" in comment
    values = YAML(typ="safe", pure=True).load(ROOT / "charts/finetune-operator/values.yaml")
    for part in value.split("."):
        values = values[part]
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert flag in capsys.readouterr().out
