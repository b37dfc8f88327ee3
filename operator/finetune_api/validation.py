"""Parse a manifest into a FineTuneJob, or report all violations at once. Pure.

Every message states what the field must be. The allowed values are read from the schema that the API server gets, so
that both report the same fields.
"""

import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from .constants import LAST_APPLIED
from .crd import Schema, crd
from .redaction import hide_credentials
from .rules import Violation, violations
from .v1alpha1 import FineTuneJob
from .v1alpha1.base import NEEDED, fault_of
from .v1alpha1.status import in_current_shape

_MAX_SHOWN = 80
_MAX_FIELDS = 6
_FREE_FORM = ("spec", "deepspeed", "config")
"""Passed on unchanged. The API server does not prune below it."""
_SECRET_BLOCK = ("spec", "workers", "env")
_MOST_DROPPED = 20
"""Maximum number of reported dropped fields: each is compared with all known names, and anybody can write the
annotation."""
_HALF_PAIR = "it contains an unpaired surrogate; write the character itself"
_NESTED_TOO_DEEPLY = Violation("spec", "must have at most 190 levels of nesting; remove the inner ones")
_LARGEST_PLAIN_NUMBER = 1e21
"""JSON writers use an exponent from this number on."""
_MAIN_FIELDS = {
    "spec.data.validation": ("sources", "fraction"),
    "spec.data.test": ("sources", "fraction"),
}
"""Fields to list in the message for a block that is not an object. Without an entry: the required ones, else all."""


_METADATA: Mapping[tuple[int | str, ...], str] = {("name",): "text", ("namespace",): "text", ("uid",): "text"}
"""Field of the metadata -> its values."""


class InvalidJobError(ValueError):
    """The object violates the schema or the rules. `violations` lists all violations."""

    def __init__(self, found: tuple[Violation, ...]) -> None:
        self.violations = found
        super().__init__("\n".join(str(violation) for violation in found))


def parse_job(manifest: Mapping[str, Any], *, local: bool = False) -> FineTuneJob:
    """Check schema and rules. Raises InvalidJobError with all violations; `local` allows `file://` addresses.

    Field names and types are as strict as in the API server: `learning_rate` is unknown, the text "2e-4" is not a
    number.
    """
    try:
        sent = {name: _as_sent(value, (name,)) if name == "spec" else value for name, value in manifest.items()}
        if "status" in sent:
            sent["status"] = in_current_shape(sent["status"])
        content = json.dumps(sent, ensure_ascii=False)
        broken = () if _is_unicode(content) else tuple(_broken_texts(manifest, ""))
    except RecursionError:
        raise InvalidJobError((_NESTED_TOO_DEEPLY,)) from None
    try:
        job = FineTuneJob.model_validate_json(
            _without_unpaired_surrogates(content), strict=True, by_alias=True, by_name=False
        )
    except ValidationError as error:
        reported = {violation.path for violation in broken}
        found = tuple(violation_of(detail) for detail in error.errors() if not _is_echo(detail))
        raise InvalidJobError((*broken, *(entry for entry in found if entry.path not in reported))) from None
    found = (*broken, *violations(job.spec, local=local))
    if found:
        raise InvalidJobError(found)
    return job


def dropped_fields(manifest: Mapping[str, Any]) -> tuple[Violation, ...]:
    """Return the fields of `kubectl apply` that the API server dropped, according to the annotation of kubectl.

    The annotation does not change when the object is corrected by other means, so this is a warning and not a
    violation.
    """
    note = manifest["metadata"].get("annotations", {}).get(LAST_APPLIED)
    try:
        applied = json.loads(note or "{}")
        sent = {**manifest, "spec": applied.get("spec", {}), "status": in_current_shape(manifest.get("status") or {})}
        FineTuneJob.model_validate(sent, by_alias=True, by_name=False)
    except ValidationError as error:
        details = [detail for detail in error.errors() if detail["type"] == "extra_forbidden"]
        return tuple(violation_of(detail) for detail in details[:_MOST_DROPPED])
    except (ValueError, AttributeError, RecursionError):
        return ()
    return ()


def _as_sent(value: Any, path: tuple[str, ...]) -> Any:
    """Return a value as the API server stores it: kubectl writes 3.0 as 3, and null fields are absent."""
    if path == _FREE_FORM:
        return value
    if isinstance(value, dict):
        return {name: _as_sent(child, (*path, name)) for name, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_as_sent(child, path) for child in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_PLAIN_NUMBER:
        return int(value)
    return value


def _is_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogates."""
    try:
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return False
    return True


def _without_unpaired_surrogates(text: str) -> str:
    """Join surrogate pairs into one character, and replace unpaired surrogates by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _broken_texts(value: Any, path: str) -> Iterator[Violation]:
    """Yield texts and names that UTF-8 cannot encode, because an escape such as `\\ud83d` is half of a character."""
    if isinstance(value, str) and not _is_unicode(value):
        yield Violation(path, f"must be valid Unicode: {_HALF_PAIR}")
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _broken_texts(entry, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _broken_entry(str(name), entry, path)


def _broken_entry(name: str, value: Any, path: str) -> Iterator[Violation]:
    shown = name if _is_unicode(name) else name.encode(errors="backslashreplace").decode()
    inner = f"{path}.{shown}" if path else shown
    if shown != name:
        yield Violation(inner, f"must have a name that is valid Unicode: {_HALF_PAIR}")
    yield from _broken_texts(value, inner)


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether a list is too short only because pydantic does not count invalid entries, which have separate errors."""
    value = detail["input"]
    return detail["type"] == "too_short" and isinstance(value, list) and len(value) >= detail["ctx"]["min_length"]


def violation_of(detail: ErrorDetails) -> Violation:
    """Describe an error of pydantic whose `loc` is a path in a job."""
    loc = detail["loc"]
    path = _path(loc)
    if detail["type"] == "json_invalid":  # the parser's limit of nesting, because `json.dumps` has written the text
        return _NESTED_TOO_DEEPLY
    if detail["type"] == "extra_forbidden":
        return Violation(path, _unknown_field(loc))
    if detail["type"] == "missing":
        return Violation(path, f"must be set to {_words(loc)}")
    return Violation(path, f"must {_requirement(detail)}, not {_shown(detail)}{_remedy(detail)}")


def _path(loc: Sequence[int | str]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _requirement(detail: ErrorDetails) -> str:
    """`be an integer`, `have at most 64 characters`: the text after "must"."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "string_pattern_mismatch":
            return f"be {NEEDED[context['pattern']]}"
        case "enum" | "literal_error":
            return f"be {'one of ' if len(_allowed(detail)) > 1 else ''}{_joined(_allowed(detail))}"
        case "greater_than_equal":
            return f"be at least {context['ge']:g}"
        case "less_than_equal":
            return f"be at most {context['le']:g}"
        case "string_too_short":
            return f"have at least {_counted(context['min_length'], 'character')}"
        case "string_too_long":
            return f"have at most {_counted(context['max_length'], 'character')}"
        case "too_short":
            return f"have at least {_counted(context['min_length'], 'entry')}"
        case "too_long":
            return f"have at most {_counted(context['max_length'], 'entry')}"
        case kind if kind in _TYPES:
            return f"be {_TYPES[kind] or _words(detail['loc'])}"
        case _:
            return detail["msg"].removeprefix("Input should ").removeprefix("a valid ")


_TYPES = {
    "string_type": "",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of at most 64 bits",
    "bool_type": "true or false",
    "tuple_type": "",
    "list_type": "",
    "dict_type": "",
    "model_type": "",
    "model_attributes_type": "",
}
"""Error type of pydantic -> expected type; empty: the description of the field."""


def _shown(detail: ErrorDetails) -> str:
    """Return the value for a message, shortened and without secrets."""
    value, loc = detail["input"], detail["loc"]
    if detail["type"] in {"too_short", "too_long"} and isinstance(value, list | dict):
        return str(len(value))
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if tuple(loc[:3]) == _SECRET_BLOCK and loc[-1] != "name":
        return "text" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "a number"
    shown = hide_credentials(json.dumps(value, default=str, ensure_ascii=False))
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 3]}..."


def _remedy(detail: ErrorDetails) -> str:
    value, kind = detail["input"], detail["type"]
    if kind == "string_pattern_mismatch" and (fault := fault_of(detail["ctx"]["pattern"], value)):
        return f": {fault}"
    if kind == "string_type" and isinstance(value, bool | int | float) and _words(detail["loc"]) == "text":
        return "; write it in quotes"
    if kind in {"float_type", "int_type", "bool_type"} and isinstance(value, str):
        return "; write it without quotes"
    if kind in {"enum", "literal_error"}:
        allowed = {word.lower(): word for word in _allowed(detail)}
        close = difflib.get_close_matches(str(value).lower(), list(allowed), n=1)
        return f"; did you mean {allowed[close[0]]}?" if close else ""
    return ""


def _allowed(detail: ErrorDetails) -> list[str]:
    return [word.strip("' ") for word in detail["ctx"]["expected"].replace(" or ", ",").split(",")]


_RENAMED = {
    "spec.runId": "runNonce",
    "spec.training.schedule": "learningRateSchedule",
    "spec.data.packing": "spec.training.batching",
    "spec.evaluation.baseline": "baseModel",
    "spec.evaluation.baselines": "simpleBaselines",
    "spec.evaluation.promote.minGainOverBaseline": "minGainOverBaseModel",
    "spec.checkpoint.maxStaleness": "uploadTimeout",
}
"""Earlier names of fields that are not similar to the present ones."""


def _unknown_field(loc: tuple[int | str, ...]) -> str:
    if renamed := _RENAMED.get(_path(loc)):
        return f"unknown field; it is called {renamed} now"
    known = list(_node(loc[:-1]).get("properties", {}))
    if not known:
        return f"unknown field; {_path(loc[:-1]) or 'the object'} has no fields, write {{}}"
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(loc[-1]).lower(), list(by_lower), n=1, cutoff=0.6)
    if close:
        listed = f" The methods are {', '.join(known)}" if _path(loc[:-1]) == "spec.method" else ""
        return f"unknown field; did you mean {by_lower[close[0]]}?{listed}"
    return f"unknown field; known fields: {', '.join(known)}"


def _words(loc: tuple[int | str, ...]) -> str:
    """Describe the values of a field, such as `a list of objects with uri`."""
    node = _node(loc)
    if loc[0] == "metadata":  # the schema of the API server has no fields for it
        return _METADATA.get(loc[1:], "an object with name")
    return _described(node, _MAIN_FIELDS.get(_path(loc), ()))


def _described(node: Schema, main_fields: tuple[str, ...] = ()) -> str:
    if node.get("pattern") in NEEDED:
        return NEEDED[node["pattern"]]
    if "enum" in node:
        return f"one of {_joined(node['enum'])}"
    match node.get("type"):
        case "array":
            entry = _described(node["items"])
            if entry.startswith("an object"):
                return f"a list of objects{entry.removeprefix('an object')}"
            return f"a list, each entry {entry}"
        case "object" if node.get("required") and not main_fields:
            return f"an object with {_joined(node['required'], 'and')}"
        case "object" if node.get("properties"):
            fields = main_fields or tuple(node["properties"])
            return f"an object with {_joined(fields if len(fields) <= _MAX_FIELDS else (*fields[:_MAX_FIELDS], '...'))}"
        case "object":
            return (
                "an object"
                if "additionalProperties" in node or "x-kubernetes-preserve-unknown-fields" in node
                else "{}"
            )
        case "boolean":
            return "true or false"
        case "string":
            return "text"
        case kind:
            return {"integer": "an integer", "number": "a number"}.get(str(kind), "a value")


@functools.cache
def _schema() -> Schema:
    schema: Schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _node(loc: Sequence[int | str]) -> Schema:
    """Return the schema of a field; empty if it has none."""
    node = _schema()
    for part in loc:
        inner = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
        node = inner if inner is not None else node.get("additionalProperties", {})
    return node


def _joined(words: Sequence[str], conjunction: str = "or") -> str:
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def _counted(number: int, noun: str) -> str:
    plural = "entries" if noun == "entry" else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
