"""The rules of the job policy: a table of the fields of a spec that each field of the policy limits. Pure.

A rule is a row of RULES, or of REFERENCES for objects that need a label. It reads its values by their paths, so a new
field of the spec is another path or another row. The operator checks the rows, and the ValidatingAdmissionPolicy of the
chart is generated from the same rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.constants import LABEL_USABLE
from finetune_api.redaction import hide_credentials
from finetune_api.rules import Violation
from finetune_api.v1alpha1 import Spec

from .matches import AT_ORIGIN, EQUAL, NAMED, WITHIN_IMAGE, Match
from .model import JobPolicy

_MAX_LISTED = 8
_MAX_SHOWN = 80

CODE_VARIABLES = (
    *("LD_*", "PYTHON*", "PATH", "BASH_ENV", "CC", "CXX", "GCONV_PATH", "GLIBC_TUNABLES", "OMP_TOOL*", "OPENSSL_*"),
    *("CUDA_HOME", "CUDA_PATH", "CUDA_INJECTION*", "HF_HOME", "HF_MODULES_CACHE", "MPLBACKEND", "MPLCONFIGDIR"),
    *("NCCL_CONF_FILE", "NCCL_NET_PLUGIN", "NCCL_PROFILER_PLUGIN", "NCCL_TUNER_PLUGIN"),
    *("TORCHINDUCTOR_*", "TORCH_EXTENSIONS_DIR", "TRITON_*", "XDG_*"),
)
"""Variables with which the dynamic linker, the interpreter or a library loads code that is not part of the image, for
example from a cache volume. The list cannot be complete; `variables` of the policy can."""
REQUEST_VARIABLES = (
    *("AWS_CONFIG_FILE", "AWS_DATA_PATH", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL*", "AWS_PROFILE"),
    *("AWS_SHARED_CREDENTIALS_FILE", "HF_ENDPOINT", "ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"),
    *("all_proxy", "https_proxy", "http_proxy", "no_proxy"),
)
"""Variables that send requests of the trainer to another address."""


@dataclass(frozen=True)
class Defaults:
    """What the operator uses for a job that does not set a field. A job may also write it out."""

    image: str = ""
    endpoint: str = ""
    credentials_secret: str = ""
    service_account: str = "default"
    """Kubernetes gives it to pods that name none."""


@dataclass(frozen=True)
class Rule:
    """A field of the policy, and the values in a spec that it limits."""

    field: str
    """Attribute of JobPolicy. The rule applies if it is not None."""
    paths: tuple[str, ...]
    """Paths of the values; `[]` after a list, as in `spec.workers.tolerations[].key`."""
    match: Match
    what: str
    """What a value is, such as `an image`."""
    default: Callable[[Defaults], str] = lambda _: ""
    """The value that is also admitted; empty: none."""
    absent: str | None = None
    """Value of a field that is absent, if that has a meaning, as in the models; None: nothing is checked."""
    refused: tuple[str, ...] = ()
    """Entries that are refused in addition to those of the field; only with `is_refusal`."""
    is_refusal: bool = False
    """Whether matching values are refused, instead of all others."""

    def entries(self, policy: JobPolicy) -> tuple[str, ...] | None:
        """Return the entries to compare values with; None: the rule does not apply."""
        listed: tuple[str, ...] | None = getattr(policy, self.field)
        return None if listed is None else self.refused or listed

    def is_admitted(self, value: str, entries: Sequence[str], defaults: Defaults) -> bool:
        """Whether a job may have this value."""
        is_listed = any(self.match.admits(entry, value) for entry in entries)
        return not is_listed if self.is_refusal else is_listed or (value != "" and value == self.default(defaults))

    @property
    def policy_field(self) -> str:
        """Name of the field in the file of the policy."""
        return str(JobPolicy.model_fields[self.field].alias)

    def requirement(self, listed: str) -> str:
        """Return what a value must be and how to correct it. `listed` are the entries of the field."""
        if self.refused:
            return f"must not be {self.what} if the job policy has {self.policy_field}; remove the entry"
        if self.is_refusal:
            return f"must not be {self.what} in {self.policy_field} of the job policy ({listed}); remove the entry"
        return (
            f"must be {self.what} in {self.policy_field} of the job policy ({listed}); use one of these, or ask an "
            "administrator to add it"
        )


_ENV_NAMES = ("spec.workers.env[].name",)

RULES: tuple[Rule, ...] = (
    Rule("images", ("spec.workers.image",), WITHIN_IMAGE, "an image", default=lambda own: own.image),
    Rule("images", _ENV_NAMES, NAMED, "a variable that loads code", refused=CODE_VARIABLES, is_refusal=True),
    Rule(
        "service_accounts",
        ("spec.workers.serviceAccountName",),
        EQUAL,
        "a service account",
        default=lambda own: own.service_account,
    ),
    Rule("priority_classes", ("spec.workers.priorityClassName",), EQUAL, "a PriorityClass"),
    Rule(
        "toleration_keys",
        (
            "spec.workers.tolerations[].key",
            "spec.stages.prepare.tolerations[].key",
            "spec.stages.evaluate.tolerations[].key",
        ),
        EQUAL,
        "the key of a taint",
        absent="",  # tolerates all taints
    ),
    Rule("storage_endpoints", ("spec.storage.endpoint",), AT_ORIGIN, "an address", default=lambda own: own.endpoint),
    Rule(
        "storage_endpoints",
        _ENV_NAMES,
        NAMED,
        "a variable that redirects requests",
        refused=REQUEST_VARIABLES,
        is_refusal=True,
    ),
    Rule("variables", _ENV_NAMES, NAMED, "a variable"),
    Rule("reserved_variables", _ENV_NAMES, NAMED, "a variable", is_refusal=True),
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
        ("spec.workers.imagePullSecrets[]", "spec.workers.env[].valueFrom.secretKeyRef.name"),
    ),
    Reference("PersistentVolumeClaim", "require_label_on_volume_claims", ("spec.workers.cache.claimName",)),
)


@dataclass(frozen=True)
class ReferencedObject:
    """An object in the namespace of a job that needs the label, and where the spec names it."""

    path: str
    kind: str
    name: str


def violations(spec: Spec, policy: JobPolicy, defaults: Defaults) -> tuple[Violation, ...]:
    """Return the values of a spec that the policy does not allow. Labels of other objects are not checked."""
    content = _content(spec)
    found = []
    for rule in RULES:
        entries = rule.entries(policy)
        if entries is None:
            continue
        for path, value in _values(content, rule.paths):
            if not rule.is_admitted(value, entries, defaults):
                requirement, _, remedy = rule.requirement(_listed(entries)).partition("; ")
                found.append(Violation(path, f"{requirement}, not {_shown(value)}; {remedy}"))
    return tuple(found)


def referenced_objects(spec: Spec, policy: JobPolicy, defaults: Defaults) -> tuple[ReferencedObject, ...]:
    """Return the objects that a spec names and whose label the policy requires."""
    content = _content(spec)
    return tuple(
        ReferencedObject(path, reference.kind, value)
        for reference in REFERENCES
        if getattr(policy, reference.field)
        for path, value in _values(content, reference.paths)
        if value != reference.default(defaults)
    )


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


def _values(content: Mapping[str, Any], paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the path, with indexes, and the value of every text at these paths."""
    for path in paths:
        yield from _values_below(content, path, "")


def _values_below(node: Any, path: str, above: str) -> Iterator[tuple[str, str]]:
    if not path:
        yield above, str(node)
        return
    head, _, rest = path.partition(".")
    name = head.removesuffix("[]")
    child, here = node.get(name), f"{above}.{name}" if above else name
    if child is None:
        return
    if name == head:
        yield from _values_below(child, rest, here)
        return
    for index, entry in enumerate(child):
        yield from _values_below(entry, rest, f"{here}[{index}]")


def _listed(entries: Sequence[str]) -> str:
    more = ("...",) if len(entries) > _MAX_LISTED else ()
    return ", ".join((*entries[:_MAX_LISTED], *more)) or "none"


def _shown(value: str) -> str:
    shown = hide_credentials(value) or '""'
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 3]}..."
