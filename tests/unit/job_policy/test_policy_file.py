"""The file of the job policy: what it may contain, and what the operator says about anything else."""

from pathlib import Path

import pytest

from finetune_operator.__main__ import _parser, _settings, main
from finetune_operator.job_policy.model import JobPolicy, PolicyError, parse_policy

FIELDS = ", ".join(str(field.alias) for field in JobPolicy.model_fields.values())

MALFORMED = {
    "nothing": ("", "must be an object, not null; write {} for the defaults"),
    "a list": ("- images\n", "must be an object, not ['images']; write {} for the defaults"),
    "no YAML": ("images: [", "must be YAML: "),
    "a field twice": ("images: []\nimages: []\n", "must be YAML: "),
    "an unknown field": ("image: []\n", f"image: unknown field; the fields are {FIELDS}"),
    "a name in Python": ("service_accounts: []\n", "service_accounts: unknown field"),
    "null": ("images:\n", "images must not be null; remove it for the default, or write [] to allow nothing"),
    "a text for a list": (
        "images: registry.example.com/team\n",
        "images must be a list, not 'registry.example.com/team'",
    ),
    "a number for a text": ("serviceAccounts: [1]\n", "serviceAccounts[0] must be text; write it in quotes, not 1"),
    "a text for a switch": (
        "requireLabelOnSecrets: maybe\n",
        "requireLabelOnSecrets must be true or false, not 'maybe'",
    ),
    "a registry without a slash": (
        "images: [ok/ok, registry.example.com]\n",
        "images[1] must be an image or a folder such as registry.example.com/team, or a registry with a slash at its "
        "end, such as registry.example.com/, not 'registry.example.com'",
    ),
    "a registry with a scheme": ("images: ['https://registry.example.com/']\n", "images[0] must be an image"),
    "a pattern of images": ("images: ['registry.example.com/*']\n", "images[0] must be an image"),
    "an endpoint with a path": (
        "storageEndpoints: ['https://s3.example.com/']\n",
        "storageEndpoints[0] must be a scheme, a host in lower case and, if needed, a port, such as "
        "https://s3.example.com, without a path, not 'https://s3.example.com/'",
    ),
    "an endpoint in capital letters": ("storageEndpoints: ['https://S3.example.com']\n", "storageEndpoints[0] must be"),
    "an endpoint with a user": ("storageEndpoints: ['https://a@s3.example.com']\n", "storageEndpoints[0] must be"),
    "an endpoint without a scheme": ("storageEndpoints: [s3.example.com]\n", "storageEndpoints[0] must be"),
    "an unknown access": (
        "hostAccess: [hostPID]\n",
        "hostAccess[0] must be 'hostNetwork', 'hostPath' or 'capabilities', not 'hostPID'",
    ),
    "hostPath as a kind of volume": ("volumeSources: [hostPath]\n", "volumeSources[0] must be 'configMap', 'secret'"),
    "a star within a key": ("labels: ['a*/b']\n", "labels[0] must be a key, or its beginning and *"),
    "an empty key": ("tolerationKeys: ['']\n", "tolerationKeys[0] must be the key of a taint"),
    "a star within a name": (
        "variables: ['A*B']\n",
        "variables[0] must be a variable's name, or its beginning and *, such as NCCL_*, not 'A*B'",
    ),
    "a long text": (f"serviceAccounts: [{'a' * 300}]\n", "serviceAccounts[0] must be at most 253 characters"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_policy_is_refused_with_path_value_and_remedy(name: str) -> None:
    text, message = MALFORMED[name]
    with pytest.raises(PolicyError) as refused:
        parse_policy(text)
    assert message in str(refused.value)


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(PolicyError) as refused:
        parse_policy("images: [1]\nvariables:\nother: 1\n")
    assert [part.split()[0] for part in str(refused.value).split("; ")][:2] == ["variables", "remove"]
    assert all(path in str(refused.value) for path in ("images[0]", "variables", "other"))


@pytest.mark.parametrize(
    "entry",
    [
        *("team", "team/trainer", "registry.example.com/team", "registry.example.com:5000/", "[fd00::1]:5000/team/"),
        *("registry.example.com/team/trainer:1.0", f"trainer@sha256:{'a' * 64}", "localhost/trainer", "Team_1:v2"),
    ],
)
def test_an_image_may_be_a_registry_a_folder_or_an_exact_reference(entry: str) -> None:
    assert parse_policy(f"images: ['{entry}']").images == (entry,)


def test_an_absent_list_is_not_an_empty_one() -> None:
    policy = parse_policy("images: []\nrequireLabelOnSecrets: true\n")
    assert (policy.images, policy.service_accounts, policy.require_label_on_secrets) == ((), None, True)
    assert parse_policy("{}") == JobPolicy()


def test_the_operator_reads_the_policy_from_its_arguments(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("serviceAccounts: [trainer]\n")
    chosen = _settings(_parser().parse_args(["run", f"--policy={path}"]))
    assert chosen.policy == parse_policy("serviceAccounts: [trainer]")
    assert _settings(_parser().parse_args(["run"])).policy is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"image: []\n", "image: unknown field"), (b"\xff\xfe\x00", "codec can't decode"), (None, "No such file")],
    ids=["malformed", "not a text", "missing"],
)
def test_the_operator_does_not_start_with_a_malformed_policy(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["run", f"--policy={path}"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"argument --policy: {path}: " in error or str(path) in error
    assert message in error
