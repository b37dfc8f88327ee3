"""What every block of the object shares: frozen, camelCase on the wire, unknown fields refused."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from .scope import Scope


@cache
def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings under the attributes of a model and of its base classes, by attribute."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for attribute, below in pairwise(definition.body):
            if isinstance(attribute, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[ast.unparse(attribute.target)] = inspect.cleandoc(ast.literal_eval(below.value))
    return found


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Describe the fields of a JSON schema by the docstrings under them.

    Only the CRD needs them. pydantic's `use_attribute_docstrings` reads them from the source at every import, a fifth
    of the CPU time of importing this package.
    """
    docstrings = _docstrings(model)
    for name, info in model.model_fields.items():
        described = schema["properties"].get(info.alias)
        if described is not None and name in docstrings:
            described.setdefault("description", docstrings[name])


class ApiModel(BaseModel):
    """A block that users write. The docstring under a field becomes its text in `kubectl explain`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        json_schema_extra=_describe,
    )

    scope: ClassVar[Scope | None] = None
    """Scope of the fields without a marker. None: every field that uses the block must have a marker."""

    def __init_subclass__(cls, *, scope: Scope | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if scope is not None:
            cls.scope = scope

    def without_fixed_defaults(self) -> Self:
        """Return a copy without the fields that are set to their fixed default, such as 3 epochs.

        Blocks with such a field override this method. Hashes are computed over the result, so a default that is
        written out does not change a hash.
        """
        return self


class StatusModel(ApiModel):
    """A block that the operator writes. Unknown fields are ignored: an older operator may read a newer status."""

    model_config = ConfigDict(extra="ignore")


NEEDED: dict[str, str] = {}
"""Pattern -> description of the values that it matches, shown in errors instead of the regular expression."""


_FAULTS: dict[str, Callable[[str], str]] = {}
"""Pattern -> function that returns what is wrong with a value; empty if there is no specific reason."""


def matching(pattern: str, needed: str, *, max_length: int, fault: Callable[[str], str] | None = None) -> Any:
    """A text field that must match `pattern`. `needed` describes the pattern, with an example.

    `fault` returns what is wrong with a value that does not match.
    """
    NEEDED[pattern] = needed
    if fault is not None:
        _FAULTS[pattern] = fault
    return Field(pattern=pattern, max_length=max_length)


def fault_of(pattern: str, value: object) -> str:
    """Return what is wrong with a value that does not match the pattern; empty if there is no specific reason."""
    return _FAULTS[pattern](value) if pattern in _FAULTS and isinstance(value, str) else ""


_BUCKET_NAME = "[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_BUCKET = f"s3://{_BUCKET_NAME}"
_BUCKET_RULE = "a bucket's name has 3 to 63 characters of a-z, 0-9, '.' and '-'"

Duration = Annotated[
    str, matching(r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "a duration such as 90s, 10m or 1h30m", max_length=32)
]
"""A Go-style duration, such as `90s`, `10m` or `1h30m`."""

ENDPOINT_PATTERN = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"
"""URL of an S3-compatible server, including the path before the bucket, if any."""

_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$"


def _as_text(value: object) -> object:
    """Accept `cpu: 4` and `cpu: 0.5` as well as `cpu: "4"` and `cpu: "0.5"`, as pods do."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_QUANTITY_SCHEMA: dict[str, Any] = {
    # Text or any number. x-kubernetes-int-or-string would reject 0.5, so the schema allows every type and then excludes
    # booleans, objects and lists.
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

_PATH = r"[^\x00-\x1f\x7f]*[^\x00-\x20\x7f]"
"""Keys and paths may contain any character except control characters, and must not end with a space."""
_HUB_NAME = "[A-Za-z0-9._-]+"
_HUB_MODEL = f"hf://({_HUB_NAME}/)?{_HUB_NAME}(@[A-Za-z0-9._/-]+)?"
_HUB_FILES = f"hf://datasets/{_HUB_NAME}[/@]{_PATH}"


def _address_fault(value: str, *, schemes: tuple[str, ...], needs_key: bool = True) -> str:
    """Return what is wrong with an address. `schemes` are the schemes that the field accepts."""
    if value != value.strip():
        return "it begins or ends with a space"
    if control := next((character for character in value if ord(character) < 32 or ord(character) == 127), None):
        return f"it has the control character U+{ord(control):04X}"
    scheme, separator, rest = value.partition("://")
    if not separator:
        return "it has no scheme such as s3://"
    if scheme in ("http", "https"):
        hub = re.fullmatch(r"huggingface\.co/(datasets/)?([^/]+/[^/]+)(/.*)?", rest)
        return f"it is a web page; write hf://{hub[1] or ''}{hub[2]}" if hub else "it is a web address"
    if scheme not in schemes:
        return f"{scheme}:// is not supported here"
    if scheme == "file" and not rest.startswith("/"):
        return f"the path must be absolute, as in file:///{rest}"
    return _s3_fault(rest, needs_key=needs_key) if scheme == "s3" else ""


def _s3_fault(rest: str, *, needs_key: bool) -> str:
    bucket, _, key = rest.partition("/")
    if not re.fullmatch(_BUCKET_NAME, bucket):
        return f"'{bucket}' is not a bucket's name" if bucket else "the bucket is missing"
    return "the key after the bucket is missing" if needs_key and not key else ""


def _output_fault(value: str) -> str:
    return _address_fault(value, schemes=("s3",), needs_key=False)


def _model_fault(value: str) -> str:
    if fault := _address_fault(value, schemes=("s3", "hf", "file")):
        return fault
    name = value.removeprefix("hf://").partition("@")[0]
    if value.startswith("hf://datasets/"):
        return "it is a dataset, not a model"
    return f"'{name}' is not a model's name on the hub"


def _data_fault(value: str) -> str:
    if fault := _address_fault(value, schemes=("s3", "hf", "file")):
        return fault
    rest = value.removeprefix("hf://")
    if not rest.startswith("datasets/"):
        return f"it is a model, not a dataset; write hf://datasets/{rest}/path"
    return "the path within the dataset is missing"


S3Uri = Annotated[
    str,
    matching(
        rf"^{_BUCKET}(/|/{_PATH})?$",
        f"an address such as s3://bucket/prefix ({_BUCKET_RULE})",
        max_length=1024,
        fault=_output_fault,
    ),
]
"""An object-storage address, `s3://bucket/prefix`."""

ModelUri = Annotated[
    str,
    matching(
        rf"^({_BUCKET}/{_PATH}|{_HUB_MODEL}|file:///{_PATH})$",
        f"s3://bucket/prefix, hf://organization/name, hf://name or, for local runs, file:///path ({_BUCKET_RULE})",
        max_length=1024,
        fault=_model_fault,
    ),
]
"""`s3://bucket/prefix`, `hf://[organization/]name[@revision]` or, for local runs, `file:///path`."""

DataUri = Annotated[
    str,
    matching(
        rf"^({_BUCKET}/{_PATH}|{_HUB_FILES}|file:///{_PATH})$",
        f"s3://bucket/key, hf://datasets/organization/name/path or, for local runs, file:///path ({_BUCKET_RULE})",
        max_length=1024,
        fault=_data_fault,
    ),
]
"""`s3://bucket/key`, `hf://datasets/[organization/]name[@revision]/path` or, for local runs, `file:///path`; `*`, `?`
and `[...]` match within a name, unless a file with exactly this name exists."""
