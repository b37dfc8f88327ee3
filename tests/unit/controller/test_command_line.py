"""Arguments of the operator that are checked before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_operator.__main__ import _parser


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--lease=finetune-operator", "must be NAMESPACE/NAME, not finetune-operator"),
        ("--lease=a/b/c", "must be NAMESPACE/NAME, not a/b/c"),
        ("--lease=../a", "must be NAMESPACE/NAME, not ../a"),
        ("--lease-seconds=1", "must be a whole number of at least 5, not 1"),
        ("--lease-seconds=7.5", "must be a whole number of at least 5, not 7.5"),
    ],
)
def test_an_unusable_argument_is_refused_with_its_reason(
    argument: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args(["run", argument])
    assert reason in capsys.readouterr().err


def test_the_lease_has_a_namespace_and_a_name() -> None:
    options = _parser().parse_args(["run", "--lease=finetune-system/finetune-operator"])
    assert (options.lease, options.lease_seconds) == (("finetune-system", "finetune-operator"), 15)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"volume": []}, "volume: unknown field; known fields: volumes, volumeMounts, env"),
        ({"defaults": {"train": {}}}, "defaults.train: unknown field; known fields: workers, prepare, evaluate"),
        (
            {"defaults": {"prepare": {"priorityClassName": "a"}}},
            "defaults.prepare.priorityClassName: unknown field; known fields: nodeSelector, tolerations, schedulerName",
        ),
        (
            {"defaults": {"workers": {"schedulerName": "A"}}},
            "defaults.workers.schedulerName must be a name of a-z",
        ),
        (
            {"defaults": {"workers": {"tolerations": [{"operator": "In"}]}}},
            'defaults.workers.tolerations[0].operator must be one of Exists or Equal, not "In"',
        ),
        (
            {"defaults": {"evaluate": {"tolerations": [{"opertor": "Exists"}]}}},
            "defaults.evaluate.tolerations[0].opertor: unknown field; did you mean operator?",
        ),
        ({"env": [{"nam": "A"}]}, "env[0].nam: unknown field; did you mean name?"),
        (
            {"env": [{"name": "A", "valueFrom": {"secretRef": {}}}]},
            "env[0].valueFrom.secretRef: unknown field; known fields: secretKeyRef, configMapKeyRef, fieldRef, ",
        ),
        ({"volumes": [{"name": "a"}]}, "volumes[0] must have exactly one source, not 0"),
        ({"volumes": [{"name": "config", "emptyDir": {}}]}, "volumes[0].name must be unique and none of config, "),
        ({"volumeMounts": [{"name": "a", "mountPath": "/a"}]}, "volumeMounts[0].name must be a name in volumes, not a"),
        ({"defaults": []}, "defaults must be an object with workers, prepare, evaluate"),
    ],
)
def test_unusable_additions_are_refused_with_their_path(
    content: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "additions.json"
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        _parser().parse_args(["run", f"--pod-additions={file}"])
    assert reason in capsys.readouterr().err
