"""The fields of the job policy, and its file. Pure."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from finetune_api.v1alpha1.base import NEEDED, SecretName, matching
from finetune_api.v1alpha1.workers import QueueName

_MAX_SHOWN = 80

_COMPONENT = "[A-Za-z0-9][A-Za-z0-9._-]*"
_TAG = r"(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?"
_HOST = r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?"

Image = Annotated[
    str,
    matching(
        # A name without a slash is an image and not a registry, so it must not look like one.
        f"^({_HOST}/({_COMPONENT}/)*({_COMPONENT}{_TAG})?|[A-Za-z0-9_-]+{_TAG})$",
        "an image or a folder such as registry.example.com/team, or a registry with a slash at its end, such as "
        "registry.example.com/",
        max_length=512,
    ),
]
Origin = Annotated[
    str,
    matching(
        r"^https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?$",
        "a scheme, a host in lower case and, if needed, a port, such as https://s3.example.com, without a path",
        max_length=512,
    ),
]
TaintKey = Annotated[
    str,
    matching(
        r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$", "the key of a taint, such as nvidia.com/gpu", max_length=316
    ),
]
Variable = Annotated[
    str,
    matching(
        r"^([A-Za-z_][A-Za-z0-9_]*)?\*?$", "a variable's name, or its beginning and *, such as NCCL_*", max_length=128
    ),
]
Key = Annotated[
    str,
    matching(
        r"^([A-Za-z0-9][A-Za-z0-9._/-]*)?\*?$",
        "a key, or its beginning and *, such as example.com/*",
        max_length=317,
    ),
]
HostAccess = Literal["hostNetwork", "hostPath", "capabilities"]
VolumeSource = Literal[
    "configMap",
    "secret",
    "projected",
    "downwardAPI",
    "emptyDir",
    "persistentVolumeClaim",
    "ephemeral",
    "image",
    "csi",
    "nfs",
]
DEFAULT_VOLUME_SOURCES: tuple[VolumeSource, ...] = (
    *("configMap", "secret", "projected", "downwardAPI", "emptyDir", "persistentVolumeClaim", "ephemeral", "image"),
)
"""Those of Pod Security `restricted` without csi: a driver may connect to any address and read any Secret."""


class JobPolicy(BaseModel):
    """What jobs may use. A list that is absent is no restriction, except for `host_access` and `volume_sources`; an
    empty one allows only the operator's default."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, use_attribute_docstrings=True, title=""
    )

    images: tuple[Image, ...] | None = None
    """Images, repositories or registries (docs/security.md). Also refuses variables and mounts that load code."""
    service_accounts: tuple[SecretName, ...] | None = None
    """Service accounts of the pods."""
    priority_classes: tuple[SecretName, ...] | None = None
    """PriorityClasses of the pods."""
    toleration_keys: tuple[TaintKey, ...] | None = None
    """Keys of the taints that the pods tolerate."""
    storage_endpoints: tuple[Origin, ...] | None = None
    """Scheme, host and port of object storage and of trackers. Also refuses variables such as HTTPS_PROXY."""
    variables: tuple[Variable, ...] | None = None
    """Environment variables that jobs may set; `NCCL_*` is every name with that beginning."""
    denied_variables: tuple[Variable, ...] | None = None
    """Environment variables that jobs must not set."""
    host_access: tuple[HostAccess, ...] | None = None
    """Access to the node: hostNetwork, hostPath, capabilities. Null, in a policy with other fields: none."""
    volume_sources: tuple[VolumeSource, ...] | None = None
    """Kinds of volumes. Null, in a policy with other fields: those of Pod Security `restricted`, except csi."""
    runtime_classes: tuple[SecretName, ...] | None = None
    """RuntimeClasses of the pods."""
    schedulers: tuple[SecretName, ...] | None = None
    """Schedulers of the pods."""
    queues: tuple[QueueName, ...] | None = None
    """Queues of training attempts."""
    labels: tuple[Key, ...] | None = None
    """Keys of labels that jobs may add to pods; `example.com/*` is every key with that beginning."""
    annotations: tuple[Key, ...] | None = None
    """The same for annotations."""
    require_label_on_secrets: bool = False
    """Secrets need the label `finetune.dev/usable-by-jobs: "true"`. The operator may then get Secrets."""
    require_label_on_volume_claims: bool = False
    """The same for PersistentVolumeClaims."""


class PolicyError(ValueError):
    """The text is not a policy. The message has every error with path, value and remedy."""


def parse_policy(text: str) -> JobPolicy:
    """Parse the YAML of a policy. Raises PolicyError."""
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        raise PolicyError(f"must be YAML: {error}") from None
    if not isinstance(content, dict):
        raise PolicyError(f"must be an object, not {_shown(content)}; write {{}} for the defaults")
    errors = [
        f"{name} must not be null; remove it for the default, or write [] to allow nothing"
        for name, value in content.items()
        if value is None
    ]
    try:
        policy = JobPolicy.model_validate(content, by_alias=True, by_name=False)
    except ValidationError as error:
        errors += _errors(error)
    if errors:
        raise PolicyError("; ".join(errors))
    return policy


def _errors(error: ValidationError) -> Iterator[str]:
    fields = ", ".join(str(field.alias) for field in JobPolicy.model_fields.values())
    for detail in error.errors():
        first, *rest = detail["loc"]
        path = str(first) + "".join(f"[{part}]" for part in rest)
        if detail["type"] == "extra_forbidden":
            yield f"{path}: unknown field; the fields are {fields}"
        else:
            yield f"{path} must be {_needed(detail)}, not {_shown(detail['input'])}"


def _needed(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "string_pattern_mismatch":
            return NEEDED[detail["ctx"]["pattern"]]
        case "string_too_long":
            return f"at most {detail['ctx']['max_length']} characters"
        case "string_type":
            return "text; write it in quotes"
        case "tuple_type":
            return "a list"
        case "literal_error":
            return str(detail["ctx"]["expected"])
        case _:
            return "true or false"


def _shown(value: Any) -> str:
    shown = repr(value) if isinstance(value, str) else "null" if value is None else str(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 3]}..."
