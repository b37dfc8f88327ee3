"""What every block of the object shares: frozen, camelCase on the wire, unknown fields refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
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


Duration = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", max_length=32)]
"""A Go-style duration, such as `90s`, `10m` or `1h30m`."""

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", max_length=32)]
"""A Kubernetes quantity, such as `500m`, `2` or `64Gi`."""

S3Uri = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?$", max_length=1024)]
"""An object-storage address, `s3://bucket/prefix`."""

ModelUri = Annotated[
    str,
    Field(
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\s]+"
        r"|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?"
        r"|file:///[^\s]+)$",
        max_length=1024,
    ),
]
"""`s3://bucket/prefix`, `hf://organisation/name[@revision]` or, for local runs, `file:///path`."""

DataUri = Annotated[
    str,
    Field(pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\s]+|file:///[^\s]+)$", max_length=1024),
]
"""`s3://bucket/key` or, for local runs, `file:///path`; `*`, `?` and `[...]` match within a name."""
