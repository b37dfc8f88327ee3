"""Read job files. Errors list all mistakes, each with file and line.

Files are parsed as YAML 1.2: `2e-4` is a number, dates stay text, and duplicate keys are errors. Unquoted scalars that
kubectl reads differently, such as `yes` and `010`, are rejected.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from finetune_api.constants import API_VERSION, KIND
from finetune_api.object_metadata import metadata_violations
from finetune_api.rules import Violation, cluster_only
from finetune_api.v1alpha1 import FineTuneJob
from finetune_api.validation import InvalidJobError, parse_job

from .kubectl_yaml import kubectl_differences

_PATH_PARTS = re.compile(r"\[(\d+)\]|([^.\[\]]+)")


class JobFileError(ValueError):
    """The file cannot be used. Every line of the message starts with the name of the file."""


class JobFileMissingError(JobFileError):
    """The file does not exist or cannot be read."""


class _Constructor(SafeConstructor):
    """Keeps dates as text, because JSON, the format of the API server, has no dates."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


@dataclass(frozen=True)
class JobFile:
    """One FineTuneJob as it is in the file."""

    path: Path
    manifest: dict[str, Any]
    node: Node
    """The same content as a tree of nodes with line numbers."""

    def check(self, *, local: bool, for_run: bool = False) -> FineTuneJob:
        """Return the validated job. Raises JobFileError with every violation of the schema or the rules.

        `local` allows `file://` addresses; `for_run` rejects settings that only work in a cluster.
        """
        differences = tuple(kubectl_differences(self.node, _yaml().constructor.construct_object))
        found = [
            Violation(name, f"must be set; write {name}: {value}")
            for name, value in (("apiVersion", API_VERSION), ("kind", KIND))
            if name not in self.manifest
        ]
        if isinstance(metadata := self.manifest.get("metadata"), dict):
            found += metadata_violations(metadata)
        try:
            job = parse_job(self.manifest, local=local)
        except InvalidJobError as error:
            found += error.violations
        else:
            found += cluster_only(job.spec) if for_run else ()
        if found or differences:
            misread = {entry.path for _, entry in differences}  # their other violations are about our value only
            located = [(self.line_of(entry.path), str(entry)) for entry in found if entry.path not in misread]
            lines = sorted([*located, *((line, str(entry)) for line, entry in differences)])
            raise JobFileError("\n".join(f"{self.path}:{line}: {text}" for line, text in lines))
        return job

    def line_of(self, field_path: str) -> int:
        """Return the line of a field, counted from 1, or of the innermost block around it if the field is absent."""
        node, line = self.node, int(self.node.start_mark.line)
        for index, name in _PATH_PARTS.findall(field_path):
            inner = _child(node, int(index) if index else name)
            if inner is None:
                break
            node, line = inner
        return line + 1


def read_job_file(path: Path) -> JobFile:
    """Return the FineTuneJob of a file. Raises JobFileError if the file is not YAML or does not contain exactly one."""
    text = _read(path)
    try:
        documents = list(zip(_yaml().load_all(text), _yaml().compose_all(text), strict=True))
    except MarkedYAMLError as error:
        raise JobFileError(_yaml_error_message(path, text, error)) from None
    except YAMLError as error:
        raise JobFileError(f"{path}: {error}") from None
    manifest, node = _only_job(path, [(value, node) for value, node in documents if value is not None])
    try:
        json.dumps(manifest, allow_nan=False)
    except ValueError:
        raise JobFileError(
            f"{path}: must not contain .nan, .inf or a block that contains itself; write numbers"
        ) from None
    return JobFile(path, manifest, node)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobFileMissingError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise JobFileError(
            f"{path}: must be UTF-8 text, but byte {error.start} is invalid; is it a YAML file?"
        ) from None
    except OSError as error:
        raise JobFileMissingError(f"{path}: {error.strerror}") from None


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    return yaml


def _only_job(path: Path, documents: list[tuple[Any, Node]]) -> tuple[dict[str, Any], Node]:
    """Return the only document, of any kind, or the only FineTuneJob of several documents."""
    if not documents:
        raise JobFileError(f"{path}: must contain a {KIND}, but is empty")
    if len(documents) > 1:
        jobs = [(value, node) for value, node in documents if isinstance(value, dict) and value.get("kind") == KIND]
        if len(jobs) != 1:
            lines = ", ".join(str(node.start_mark.line + 1) for _, node in jobs)
            found = f"{len(jobs)} are (lines {lines})" if jobs else "none is"
            raise JobFileError(f"{path}: exactly one of the {len(documents)} documents must be a {KIND}, but {found}")
        documents = jobs
    value, node = documents[0]
    if not isinstance(value, dict):
        line = node.start_mark.line + 1
        raise JobFileError(
            f"{path}:{line}: must be a {KIND}, not {_kind_of(value)}; start it with `apiVersion: {API_VERSION}`"
        )
    return value, node


def _kind_of(value: object) -> str:
    return "a list" if isinstance(value, list) else "a number" if isinstance(value, int | float) else "text"


def _yaml_error_message(path: Path, text: str, error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}" if mark else f"{path}"
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        return f"{where}: YAML does not allow tabs for indentation; use spaces"
    problem = (error.problem or error.context or "is not YAML").strip().splitlines()[0]
    return f"{where}: {problem}"


def _child(node: Node, part: int | str) -> tuple[Node, int] | None:
    """Return a child node and the line of its key or list item."""
    if isinstance(node, MappingNode):
        found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
        return (found[1], found[0].start_mark.line) if found else None
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part].start_mark.line
    return None
