"""What every block of the object shares: frozen, camelCase on the wire, unknown fields refused."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A block that users write. The docstring under a field becomes its text in `kubectl explain`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class StatusModel(ApiModel):
    """A block that the operator writes. Unknown fields are ignored: an older operator may read a newer status."""

    model_config = ConfigDict(extra="ignore")


NEEDED: dict[str, str] = {}
"""Pattern -> what it asks for, in words: what a user reads instead of a regular expression."""


def matching(pattern: str, needed: str, *, max_length: int) -> Any:
    """A text field that has to match `pattern`; `needed` says so in words, with an example."""
    NEEDED[pattern] = needed
    return Field(pattern=pattern, max_length=max_length)


_BUCKET = "s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_BUCKET_RULE = "a bucket's name has 3 to 63 characters of a-z, 0-9, '.' and '-'"

Duration = Annotated[
    str, matching(r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "a duration such as 90s, 10m or 1h30m", max_length=32)
]
"""A Go-style duration, such as `90s`, `10m` or `1h30m`."""

_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$"


def _as_text(value: object) -> object:
    """`cpu: 4` and `cpu: 0.5` are as good as `cpu: "4"` and `cpu: "0.5"`, here as in any pod."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_QUANTITY_SCHEMA: dict[str, Any] = {
    # Text or any number: x-kubernetes-int-or-string would refuse 0.5. A structural schema can only say that as a value
    # of any type, from which the other types are taken away again.
    "x-kubernetes-preserve-unknown-fields": True,
    "not": {"enum": [True, False, {}, []]},
    "maxProperties": 0,
    "maxItems": 0,
    "minimum": 0,
    "pattern": _QUANTITY,
    "maxLength": 32,
}

Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    WithJsonSchema(_QUANTITY_SCHEMA),
    matching(_QUANTITY, "a quantity such as 500m, 0.5, 2 or 64Gi", max_length=32),
]
"""A Kubernetes quantity, such as `500m`, `2` or `64Gi`."""

SecretName = Annotated[
    str,
    matching(
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "the name of an object in the job's namespace: a-z, 0-9, '-', '.'",
        max_length=253,
    ),
]
"""Name of another object in the job's namespace."""

S3Uri = Annotated[
    str, matching(rf"^{_BUCKET}(/[^\s]*)?$", f"an address such as s3://bucket/prefix ({_BUCKET_RULE})", max_length=1024)
]
"""An object-storage address, `s3://bucket/prefix`."""

ModelUri = Annotated[
    str,
    matching(
        rf"^({_BUCKET}/[^\s]+|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?|file:///[^\s]+)$",
        f"s3://bucket/prefix, hf://organisation/name or, for local runs, file:///path ({_BUCKET_RULE})",
        max_length=1024,
    ),
]
"""`s3://bucket/prefix`, `hf://organisation/name[@revision]` or, for local runs, `file:///path`."""

DataUri = Annotated[
    str,
    matching(
        rf"^({_BUCKET}/[^\s]+|file:///[^\s]+)$",
        f"s3://bucket/key or, for local runs, file:///path ({_BUCKET_RULE})",
        max_length=1024,
    ),
]
"""`s3://bucket/key` or, for local runs, `file:///path`; `*`, `?` and `[...]` match within a name."""
