"""Values of environment variables and credentials in addresses appear only where they are needed."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from factories import make_job, make_prepared
from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.redaction import HIDDEN, hide_credentials
from finetune_api.trainer_config import StorageSettings, TrainerConfig
from finetune_api.validation import InvalidJobError, parse_job
from finetune_cli.job_file import JobFileError, read_job_file
from finetune_cli.local.storage import endpoint_settings
from finetune_operator.__main__ import main as operator_main
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_stage
from finetune_operator.settings import OperatorSettings
from finetune_operator.yaml_text import dump_all
from finetune_trainer.evaluate.configuration import spec_document
from finetune_trainer.run_record import RunRecord, record_run
from finetune_trainer.store import ObjectStore

SECRET = "correct-horse-battery"
REFERENCE = {"secretKeyRef": {"name": "tokens", "key": "hub", "optional": True}}
ENV = [
    {"name": "API_TOKEN", "value": SECRET},
    {"name": "HUB", "valueFrom": REFERENCE},
    {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}},
    {"name": "EMPTY"},
]


def children(**spec: Any) -> dict[str, Any]:
    config = stage_config(parse_job(make_job(**spec)), 1, Stage.TRAIN, 1, StorageSettings())
    return {manifest["kind"]: manifest for manifest in render_stage(config, OperatorSettings())}


def test_the_config_map_has_names_and_references_of_variables_but_no_values() -> None:
    text = children(workers={"env": ENV})["ConfigMap"]["data"][constants.CONFIG_KEY]
    assert SECRET not in text
    env = json.loads(text)["spec"]["workers"]["env"]
    assert [variable["name"] for variable in env] == ["API_TOKEN", "HUB", "MODE", "EMPTY"]
    assert env[0]["value"] == HIDDEN
    assert env[1]["value_from"]["secret_key_ref"]["name"] == "tokens"
    TrainerConfig.model_validate_json(text)


def test_a_variable_reaches_the_pod_unchanged() -> None:
    manifests = children(workers={"env": ENV})
    container = manifests["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"][-4:] == [*ENV[:3], {"name": "EMPTY", "value": ""}]
    assert SECRET not in json.dumps([manifests["ConfigMap"], manifests["Job"]["metadata"]])


def test_the_report_shows_no_values() -> None:
    document = spec_document(parse_job(make_job(workers={"env": ENV})).spec)
    assert SECRET not in json.dumps(document)
    assert document["workers"]["env"][1] == {"name": "HUB", "valueFrom": REFERENCE}


class Bucket:
    """Records the stored objects."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, uri: str, content: bytes, *, content_type: str) -> None:
        """Like `ObjectStore.put`."""
        self.objects[uri] = content


def test_the_stored_record_of_a_run_has_no_values() -> None:
    """A local run has the values, because its configuration need not go through a ConfigMap."""
    job = parse_job(make_job(workers={"env": ENV}))
    config = stage_config(job, 1, Stage.PREPARE, 1, StorageSettings()).model_copy(update={"spec": job.spec})
    assert SECRET in config.model_dump_json()
    bucket = Bucket()
    record_run(cast(ObjectStore, bucket), config, make_prepared())
    ((uri, content),) = bucket.objects.items()
    assert uri == f"{config.run_uri}/run.json"
    assert SECRET.encode() not in content
    env = RunRecord.model_validate_json(content).spec.workers.env
    assert (env[0].name, env[0].value) == ("API_TOKEN", HIDDEN)
    assert env[1].value_from is not None


@pytest.mark.parametrize(
    "env",
    [
        {"API_TOKEN": SECRET},
        [f"API_TOKEN={SECRET}"],
        [{"name": "API_TOKEN", "value": {"is": SECRET}}],
        [{"name": "API_TOKEN", "value": [SECRET]}],
        [{"name": "API_TOKEN", "valueFrom": SECRET}],
        [{"name": "API_TOKEN", "valueFrom": {"secretKeyRef": SECRET}}],
        [{"name": "API_TOKEN", "value": SECRET * 400}],
    ],
)
def test_a_message_about_a_wrong_variable_does_not_show_its_value(env: Any) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(make_job(workers={"env": env}))
    assert "spec.workers.env" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@s3.example.com/x", f"https://{HIDDEN}@s3.example.com/x"),
        ("see https://token@host, please", f"see https://{HIDDEN}@host, please"),
        ("http://u:p@ss@host:9000", f"http://{HIDDEN}@host:9000"),
        ("hf://name@main and hf://a/b@v1", "hf://name@main and hf://a/b@v1"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("file:///data/me@site/x", "file:///data/me@site/x"),
        ("mail me@example.com", "mail me@example.com"),
        pytest.param("a." * 500_000, "a." * 500_000, id="a megabyte that resembles the beginning of an address"),
    ],
)
def test_credentials_in_addresses_are_hidden(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown


ADDRESS = f"https://user:{SECRET}@s3.example.com"


@pytest.mark.parametrize(
    "spec",
    [
        {"storage": {"endpoint": ADDRESS}},
        {"model": {"uri": f"{ADDRESS}/model"}},
        {"data": {"train": [{"uri": f"{ADDRESS}/a.jsonl"}]}},
        {"output": {"uri": ADDRESS}},
    ],
)
def test_an_address_with_a_password_is_rejected_without_showing_it(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidJobError) as caught:
        parse_job(make_job(**spec))
    assert SECRET not in str(caught.value)


def test_commands_reject_an_endpoint_with_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exception, match="must not contain a user name or password") as caught:
        endpoint_settings(ADDRESS)
    with pytest.raises(SystemExit):
        operator_main(["run", f"--storage-endpoint={ADDRESS}"])
    assert SECRET not in str(caught.value) + capsys.readouterr().err


def test_a_local_run_rejects_a_reference_to_a_secret_and_states_the_alternative(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(dump_all([make_job(workers={"env": ENV})]))
    file = read_job_file(path)
    file.check(local=True)
    with pytest.raises(JobFileError) as caught:
        file.check(local=True, for_run=True)
    first, second = str(caught.value).splitlines()
    assert "spec.workers.env[1].valueFrom must be absent in `finetune run`" in first
    assert "set HUB in the environment of the command" in first
    assert "spec.workers.env[2].valueFrom" in second


FILES = [{"name": "data", "emptyDir": {}}]
ONLY_IN_A_CLUSTER: list[tuple[dict[str, Any], str]] = [
    ({"workers": {"envFrom": [{"secretRef": {"name": "hub"}}]}}, "spec.workers.envFrom must be absent"),
    ({"stages": {"prepare": {"envFrom": [{"configMapRef": {"name": "c"}}]}}}, "spec.stages.prepare.envFrom must be"),
    ({"workers": {"volumes": FILES}}, "spec.workers.volumes must be absent"),
    ({"stages": {"evaluate": {"volumes": FILES}}}, "spec.stages.evaluate.volumes must be absent"),
]


@pytest.mark.parametrize(("spec", "message"), ONLY_IN_A_CLUSTER, ids=[message for _, message in ONLY_IN_A_CLUSTER])
def test_a_local_run_rejects_volumes_and_sources_of_variables(
    spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(dump_all([make_job(**spec)]))
    file = read_job_file(path)
    file.check(local=True)
    with pytest.raises(JobFileError) as caught:
        file.check(local=True, for_run=True)
    (violation,) = str(caught.value).splitlines()
    assert message in violation


def test_a_local_run_ignores_where_pods_are_placed(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    placed = {"nodeSelector": {"pool": "gpu"}, "hostNetwork": True, "runtimeClassName": "nvidia", "labels": {"a": "b"}}
    path.write_text(dump_all([make_job(workers=placed)]))
    read_job_file(path).check(local=True, for_run=True)
