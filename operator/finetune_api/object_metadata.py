"""Checks the metadata of a manifest as the API server does. Pure.

Only for files of users: stored objects have been checked, and a newer API server may add fields.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .rules import Violation
from .v1alpha1.pod import KEY_PATTERN

_FIELDS = frozenset(
    {
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)
"""Of ObjectMeta in Kubernetes 1.37."""
_WRITTEN = ("name", "namespace", "labels", "annotations")
"""Fields that users write."""
_NAMESPACE = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile("([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LONGEST_DOMAIN = 253
_MAX_ANNOTATIONS = 256 * 1024
"""Bytes of all annotations together."""


def metadata_violations(metadata: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every violation, except those of the name, which `parse_job` reports."""
    for name in metadata.keys() - _FIELDS:
        close = difflib.get_close_matches(str(name), _WRITTEN, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"known fields: {', '.join(_WRITTEN)}"
        yield Violation(f"metadata.{name}", f"unknown field; {remedy}")
    namespace = metadata.get("namespace")
    if isinstance(namespace, str) and namespace and not _NAMESPACE.fullmatch(namespace):
        yield Violation(
            "metadata.namespace",
            f"must be at most 63 characters of a-z, 0-9 and '-', with a letter or digit at both ends, not {namespace}; "
            "write the name of an existing namespace",
        )
    for name in ("labels", "annotations"):
        yield from _entries(metadata.get(name), f"metadata.{name}")
    annotations = metadata.get("annotations")
    if isinstance(annotations, Mapping):
        size = sum(len(str(part).encode(errors="replace")) for entry in annotations.items() for part in entry)
        if size > _MAX_ANNOTATIONS:
            what = f"must have at most {_MAX_ANNOTATIONS} bytes in total, not {size}; remove some"
            yield Violation("metadata.annotations", what)


def _entries(entries: Any, path: str) -> Iterator[Violation]:
    """Labels or annotations."""
    if entries is None:
        return
    if not isinstance(entries, Mapping):
        kind = "a list" if isinstance(entries, list) else "text" if isinstance(entries, str) else "a value"
        yield Violation(path, f"must be an object, not {kind}; write one `key: value` per line")
        return
    for key, value in entries.items():
        domain = str(key).rpartition("/")[0]
        # The API server compares the keys of annotations in lower case.
        checked = str(key).lower() if path.endswith("annotations") else str(key)
        if len(domain) > _LONGEST_DOMAIN or not re.fullmatch(KEY_PATTERN, checked):
            yield Violation(
                f"{path}.{key}",
                "must be a key such as team or example.com/team, of letters, digits, '-', '_' and '.'; rename it",
            )
        if value is not None and not isinstance(value, str):
            yield Violation(f"{path}.{key}", f"must be text, not {_shown(value)}; write it in quotes")
        elif value is not None and path.endswith("labels") and not _LABEL_VALUE.fullmatch(value):
            yield Violation(
                f"{path}.{key}",
                "must be at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends; shorten or "
                "correct it, or use an annotation",
            )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, Mapping) else str(value)
