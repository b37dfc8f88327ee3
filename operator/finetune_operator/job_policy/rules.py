"""The rules of the job policy: a table of the fields of a spec that each field of the policy limits. Pure.

A rule is a row of RULES, or of REFERENCES for objects that need a label. It reads its values by their paths, so a new
field of the spec is another path or another row. The operator checks the rows, and the ValidatingAdmissionPolicy of the
chart is generated from the same rows.

Parts of a path are names of fields, with `[]` after a list, as in `spec.workers.tolerations[].key`. A path that ends
with `{}` yields the names of the fields of an object that are set, and `{a,b}` only those of a and b.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.constants import LABEL_USABLE
from finetune_api.redaction import hide_credentials
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import Spec, Volume
from finetune_api.v1alpha1.pod import POD_BLOCKS

from .matches import (
    ALL_BEGIN,
    AT_ORIGIN,
    BELOW,
    EQUAL,
    NAMED,
    NAMED_IN_ANY_CASE,
    SOME_BEGIN,
    SOME_BEGIN_IN_ANY_CASE,
    WITHIN_IMAGE,
    Match,
)
from .model import DEFAULT_VOLUME_SOURCES, JobPolicy

_MAX_LISTED = 8
_MAX_SHOWN = 80
_LONGEST_NAME = 253
_NAME = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"

CODE_VARIABLES = (
    *("LD_*", "PYTHON*", "PATH", "BASH_ENV", "GCONV_PATH", "GLIBC_TUNABLES", "OMP_TOOL*", "OPENSSL_*"),
    *("CC", "COMPILER_PATH", "CPATH", "CPLUS_INCLUDE_PATH", "CXX", "C_INCLUDE_PATH", "GCC_EXEC_PREFIX", "LIBRARY_PATH"),
    *("CUDA_HOME", "CUDA_PATH", "CUDA_INJECTION*", "HSA_TOOLS_LIB", "NVCC_*", "NVTX_INJECTION*"),
    *("HF_HOME", "HF_MODULES_CACHE", "MPLBACKEND", "MPLCONFIGDIR"),
    *("FI_PROVIDER_PATH", "IBV_DRIVERS", "RDMAV_DRIVERS", "UCX_MODULE_DIR", "NCCL_CONF_FILE", "NCCL_ENV_PLUGIN"),
    *("NCCL_GIN_PLUGIN", "NCCL_NET_PLUGIN", "NCCL_PROFILER_PLUGIN", "NCCL_TUNER_PLUGIN"),
    *("TORCHINDUCTOR_*", "TORCH_EXTENSIONS_DIR", "TRITON_*", "XDG_*"),
)
"""Variables with which the dynamic linker, the interpreter or a library loads code that is not part of the image, for
example from a cache volume. In upper case; names are compared in any case. The list cannot be complete; `variables` of
the policy can."""
REQUEST_VARIABLES = (
    *("AWS_CONFIG_FILE", "AWS_CONTAINER_*", "AWS_DATA_PATH", "AWS_DEFAULT_PROFILE", "AWS_EC2_METADATA_*"),
    *("AWS_ENDPOINT_URL*", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "HF_ENDPOINT", "S3_ENDPOINT"),
    *("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"),
    *("HOSTALIASES", "LOCALDOMAIN", "RESOLV_*", "RES_OPTIONS"),
)
"""Variables that send requests of the trainer to another address: of boto3, which also sends the token of the service
account to AWS_CONTAINER_CREDENTIALS_FULL_URI, of proxies, which libraries read in any case, and of the resolver. In
upper case; names are compared in any case."""
MOUNT_FOLDERS = ("/data", "/mnt")
"""Folders that have no code. A volume at another path could replace files of the image."""
PROJECTED_SOURCES = ("clusterTrustBundle", "configMap", "downwardAPI", "secret")
"""Sources of projected volumes that are not credentials of the service account: not `serviceAccountToken` and
`podCertificate`."""
PROFILE_ANNOTATIONS = (
    *("container.apparmor.security.beta.kubernetes.io/*", "container.seccomp.security.alpha.kubernetes.io/*"),
    "seccomp.security.alpha.kubernetes.io/*",
)
"""Annotations that turn off AppArmor or seccomp for a container."""


@dataclass(frozen=True)
class Defaults:
    """What the operator uses for a job that does not set a field. A job may also write it out."""

    image: str = ""
    endpoint: str = ""
    credentials_secret: str = ""
    service_account: str = "default"
    """Kubernetes gives it to pods that name none."""
    scheduler: str = "default-scheduler"
    """Kubernetes gives it to pods that name none."""


@dataclass(frozen=True)
class Rule:
    """A field of the policy, and the values in a spec that it limits."""

    field: str
    """Attribute of JobPolicy. The rule applies if it is not None."""
    paths: tuple[str, ...]
    """Paths of the values."""
    match: Match
    what: str
    """What a value is, such as `an image`."""
    default: Callable[[Defaults], str] = lambda _: ""
    """The value that is also admitted; empty: none."""
    absent: str | None = None
    """Value of a field that is absent, if that has a meaning, as in the models; None: nothing is checked."""
    fixed: tuple[str, ...] = ()
    """Entries to compare with instead of those of the field."""
    is_refusal: bool = False
    """Whether matching values are refused, instead of all others."""
    without_field: tuple[str, ...] | None = None
    """Entries of a policy without the field; None: the rule does not apply to such a policy."""
    is_in_admission_policy: bool = True
    """Whether the ValidatingAdmissionPolicy has the rule. It has none for values below a free-form field, which the
    schema of the API server does not describe."""

    def entries(self, policy: JobPolicy) -> tuple[str, ...] | None:
        """Return the entries to compare values with; None: the rule does not apply."""
        given: tuple[str, ...] | bool | None = getattr(policy, self.field)
        listed = self.without_field if given is None or given is False else () if given is True else given
        return None if listed is None else self.fixed or listed

    def is_admitted(self, value: str | None, entries: Sequence[str], defaults: Defaults) -> bool:
        """Whether a job may have this value; None, a value of another type, is never admitted."""
        if value is None:
            return False
        is_listed = any(self.match.admits(entry, value) for entry in entries)
        return not is_listed if self.is_refusal else is_listed or (value != "" and value == self.default(defaults))

    @property
    def policy_field(self) -> str:
        """Name of the field in the file of the policy."""
        return str(JobPolicy.model_fields[self.field].alias)

    def requirement(self, listed: str) -> str:
        """Return what a value must be and how to correct it. `listed` are the entries to compare with."""
        verb = "have" if self.paths[0].endswith("}") else "be"
        if self.fixed:
            when = f"if the job policy has {self.policy_field}" if self.without_field is None else "with a job policy"
            if self.is_refusal:
                return f"must not {verb} {self.what} {when}; remove the entry"
            return f"must {verb} {self.what} ({listed}) {when}; use one of these, or remove the entry"
        if self.is_refusal:
            return f"must not {verb} {self.what} in {self.policy_field} of the job policy ({listed}); remove the entry"
        return (
            f"must {verb} {self.what} in {self.policy_field} of the job policy ({listed}); use one of these, or ask an "
            "administrator to add it"
        )


def _in_pods(*fields: str) -> tuple[str, ...]:
    """Return the paths of fields of all blocks with settings of pods."""
    return tuple(f"spec.{block}{field}" for field in fields for block in POD_BLOCKS)


_ENV_NAMES = ("spec.workers.env[].name",)
_PREFIXES = _in_pods(".envFrom[].prefix")
"""The keys of Secrets and ConfigMaps are unknown: their prefixes are compared."""
_SOURCES = ",".join(
    str(field.alias) for name, field in Volume.model_fields.items() if name not in ("name", "host_path")
)

RULES: tuple[Rule, ...] = (
    Rule("images", ("spec.workers.image",), WITHIN_IMAGE, "an image", default=lambda own: own.image),
    Rule(
        "images",
        _in_pods(".volumes[].image.reference"),
        WITHIN_IMAGE,
        "an image",
        default=lambda own: own.image,
        is_in_admission_policy=False,
    ),
    Rule("images", _ENV_NAMES, NAMED_IN_ANY_CASE, "a variable that loads code", fixed=CODE_VARIABLES, is_refusal=True),
    Rule(
        "images",
        _PREFIXES,
        SOME_BEGIN_IN_ANY_CASE,
        "the beginning of a variable that loads code",
        absent="",
        fixed=CODE_VARIABLES,
        is_refusal=True,
    ),
    Rule(
        "images", _in_pods(".volumeMounts[].mountPath"), BELOW, "a path in a folder without code", fixed=MOUNT_FOLDERS
    ),
    Rule(
        "service_accounts",
        ("spec.workers.serviceAccountName",),
        EQUAL,
        "a service account",
        default=lambda own: own.service_account,
    ),
    Rule(
        "service_accounts",
        _in_pods(".volumes[].projected.sources[]{}"),
        EQUAL,
        "a source without credentials of the service account",
        fixed=PROJECTED_SOURCES,
        is_in_admission_policy=False,
    ),
    Rule("priority_classes", ("spec.workers.priorityClassName",), EQUAL, "a PriorityClass"),
    Rule(
        "toleration_keys",
        _in_pods(".tolerations[].key"),
        EQUAL,
        "the key of a taint",
        absent="",  # tolerates all taints
    ),
    Rule("storage_endpoints", ("spec.storage.endpoint",), AT_ORIGIN, "an address", default=lambda own: own.endpoint),
    Rule(
        "storage_endpoints",
        (
            *("spec.tracking.mlflow.trackingUri", "spec.evaluation.promote.mlflow.trackingUri"),
            *("spec.tracking.wandb.baseUrl", "spec.tracking.trackio.serverUrl"),
        ),
        AT_ORIGIN,
        "an address",
    ),
    Rule(
        "storage_endpoints",
        _ENV_NAMES,
        NAMED_IN_ANY_CASE,
        "a variable that redirects requests",
        fixed=REQUEST_VARIABLES,
        is_refusal=True,
    ),
    Rule(
        "storage_endpoints",
        _PREFIXES,
        SOME_BEGIN_IN_ANY_CASE,
        "the beginning of a variable that redirects requests",
        absent="",
        fixed=REQUEST_VARIABLES,
        is_refusal=True,
    ),
    Rule("variables", _ENV_NAMES, NAMED, "a variable"),
    Rule("variables", _PREFIXES, ALL_BEGIN, "the beginning of names", absent=""),
    Rule("denied_variables", _ENV_NAMES, NAMED, "a variable", is_refusal=True),
    Rule("denied_variables", _PREFIXES, SOME_BEGIN, "the beginning of a name", absent="", is_refusal=True),
    Rule(
        "host_access",
        _in_pods("{hostNetwork,capabilities}", ".volumes[]{hostPath}"),
        EQUAL,
        "only access to the node that is",
        without_field=(),
    ),
    Rule(
        "host_access",
        _in_pods(".annotations{}"),
        NAMED,
        "an annotation that turns off AppArmor or seccomp",
        fixed=PROFILE_ANNOTATIONS,
        is_refusal=True,
        without_field=(),
    ),
    Rule(
        "volume_sources",
        _in_pods(f".volumes[]{{{_SOURCES}}}"),
        EQUAL,
        "a source",
        without_field=DEFAULT_VOLUME_SOURCES,
    ),
    Rule("runtime_classes", _in_pods(".runtimeClassName"), EQUAL, "a RuntimeClass"),
    Rule("schedulers", _in_pods(".schedulerName"), EQUAL, "a scheduler", default=lambda own: own.scheduler),
    Rule("queues", ("spec.workers.queue",), EQUAL, "a queue"),
    Rule("queues", _in_pods(".labels{}"), NAMED, "a label of Kueue", fixed=("kueue.x-k8s.io/*",), is_refusal=True),
    Rule("labels", _in_pods(".labels{}"), NAMED, "only labels"),
    Rule("annotations", _in_pods(".annotations{}"), NAMED, "only annotations"),
    Rule(
        "require_label_on_volume_claims",
        _in_pods(".volumes[].ephemeral.volumeClaimTemplate.spec{dataSource,dataSourceRef,selector,volumeName}"),
        NAMED,
        "the content of another volume",
        fixed=("*",),
        is_refusal=True,
        is_in_admission_policy=False,
    ),
)


@dataclass(frozen=True)
class Reference:
    """A kind of object that jobs may use only with the label if the policy requires it."""

    kind: str
    field: str
    """Attribute of JobPolicy that requires the label."""
    paths: tuple[str, ...]
    """Paths of names."""
    default: Callable[[Defaults], str] = lambda _: ""
    """The name that needs no label, because jobs that do not set the field use it too; empty: none."""


REFERENCES: tuple[Reference, ...] = (
    Reference(
        "Secret",
        "require_label_on_secrets",
        ("spec.storage.credentialsSecret",),
        default=lambda own: own.credentials_secret,
    ),
    Reference(
        "Secret",
        "require_label_on_secrets",
        (
            "spec.workers.imagePullSecrets[]",
            "spec.workers.env[].valueFrom.secretKeyRef.name",
            *_in_pods(
                ".envFrom[].secretRef.name",
                ".volumes[].secret.secretName",
                ".volumes[].projected.sources[].secret.name",
                ".volumes[].csi.nodePublishSecretRef.name",
            ),
        ),
    ),
    Reference(
        "PersistentVolumeClaim",
        "require_label_on_volume_claims",
        ("spec.workers.cache.claimName", *_in_pods(".volumes[].persistentVolumeClaim.claimName")),
    ),
)


@dataclass(frozen=True)
class ReferencedObject:
    """An object in the namespace of a job that needs the label, and where the spec names it."""

    path: str
    kind: str
    name: str


def violations(
    spec: Spec, policy: JobPolicy, defaults: Defaults, rules: Sequence[Rule] = RULES
) -> tuple[Violation, ...]:
    """Return the values of a spec that the policy does not allow. Labels of other objects are not checked."""
    content = _content(spec)
    found = []
    for rule in rules:
        entries = rule.entries(policy)
        if entries is None:
            continue
        for path, value in _values(content, rule.paths, rule.absent):
            if not rule.is_admitted(value, entries, defaults):
                requirement, _, remedy = rule.requirement(_listed(entries)).partition("; ")
                found.append(Violation(path, f"{requirement}, not {_shown(value)}; {remedy}"))
    for reference, path, value in _references(content, policy):
        if not _is_name(value):
            message = f"must be the name of a {reference.kind}, not {_shown(value)}; correct it"
            found.append(Violation(path, message))
    return tuple(found)


def referenced_objects(spec: Spec, policy: JobPolicy, defaults: Defaults) -> tuple[ReferencedObject, ...]:
    """Return the objects that a spec names and whose label the policy requires. Values that are not names are
    violations of the policy."""
    return tuple(
        ReferencedObject(path, reference.kind, value)
        for reference, path, value in _references(_content(spec), policy)
        if value is not None and _is_name(value) and value != reference.default(defaults)
    )


def _references(content: Mapping[str, Any], policy: JobPolicy) -> Iterator[tuple[Reference, str, str | None]]:
    for reference in REFERENCES:
        if getattr(policy, reference.field):
            yield from ((reference, path, value) for path, value in _values(content, reference.paths))


def _is_name(value: str | None) -> bool:
    """Whether a value, which may be from a free-form field, can be the name of an object, and so part of a URL."""
    return value is not None and len(value) <= _LONGEST_NAME and re.fullmatch(_NAME, value) is not None


def label_violation(named: ReferencedObject, labels: Mapping[str, str] | None) -> Violation | None:
    """Return the violation of an object without the label; None: it has the label. `labels` None: it does not exist."""
    if labels is not None and labels.get(LABEL_USABLE) == "true":
        return None
    state = "does not exist" if labels is None else "does not have it"
    return Violation(
        named.path,
        f'must name a {named.kind} with the label {LABEL_USABLE}: "true", which the job policy requires, and '
        f"{named.name} {state}; ask an administrator to add the label, or use another {named.kind}",
    )


def _content(spec: Spec) -> dict[str, Any]:
    return {"spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _values(
    content: Mapping[str, Any], paths: Sequence[str], absent: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Yield the path, with indexes, and the value of every text at these paths.

    The value is None if it, or an object or list above it, has another type. Free-form fields can have any content.
    """
    for path in paths:
        yield from _values_below(content, path, "", absent)


def _values_below(node: Any, path: str, above: str, absent: str | None) -> Iterator[tuple[str, str | None]]:
    if not path:
        yield above, node if isinstance(node, str) else None
        return
    if not isinstance(node, dict):
        yield above, None
        return
    head, _, rest = path.partition(".")
    part, braces, fields = head.partition("{")
    name = part.removesuffix("[]")
    child, here = node.get(name), f"{above}.{name}" if above else name
    if child is None:
        if absent is not None and not rest:
            yield here, absent
        return
    if name != part and not isinstance(child, list):
        yield here, None
        return
    entries = [(here, child)] if name == part else [(f"{here}[{index}]", entry) for index, entry in enumerate(child)]
    for place, entry in entries:
        if entry is None:
            continue
        if not braces:
            yield from _values_below(entry, rest, place, absent)
        elif isinstance(entry, dict):
            names = fields.removesuffix("}").split(",") if fields != "}" else entry
            yield from ((place, field) for field in names if _is_set(entry.get(field)))
        else:
            yield place, None


def _is_set(value: Any) -> bool:
    """Whether a field differs from its absence. An empty object does: `emptyDir: {}` is a volume."""
    return value is not None and value is not False and value != []


def _listed(entries: Sequence[str]) -> str:
    more = ("...",) if len(entries) > _MAX_LISTED else ()
    return ", ".join((*entries[:_MAX_LISTED], *more)) or "none"


def _shown(value: str | None) -> str:
    if value is None:
        return "a value of another type"
    shown = hide_credentials(value) or '""'
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 3]}..."
