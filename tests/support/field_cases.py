"""Every field of a spec with valid and invalid values, generated from the models, for tests of validation."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from factories import make_job, merged
from finetune_api.crd import Schema, structural_schema
from finetune_api.support import SUPPORT
from finetune_api.v1alpha1 import Spec
from finetune_api.v1alpha1.pod import POD_BLOCKS
from method_cases import needed_with

Manifest = dict[str, Any]

_TEXTS = ("s3://bucket/x", "5m", "https://s3.example.com", "x-1", "X_1", "en")
"""Values for text fields; each accepts one of these."""
_SELECTOR = {"name": "x", "key": "x"}
_TOLERATION = {"key": "gpu", "effect": "NoExecute"}
_MOUNT = {"name": "x", "mountPath": "/data"}
_POD_VALUES: dict[str, Any] = {
    "tolerations[]": _TOLERATION,
    "tolerations[].effect": "NoExecute",
    "volumes[]": {"name": "x", "emptyDir": {}},
    "volumeMounts[]": _MOUNT,
    "volumeMounts[].name": "x",
    "volumeMounts[].mountPath": "/data",
    "envFrom[]": {"secretRef": {"name": "x"}},
}
_SET = {"name": "x", "sources": [{"uri": "s3://bucket/x"}]}
_SERVER = "https://mlflow.example.com"
_VALUES: dict[str, Any] = {
    "method": {"full": {}},
    "method.full.freeze": {"firstLayers": 1},
    "method.full.pruning": {"algorithm": "Magnitude", "sparsity": 0.5},
    "method.full.gradualUnfreezing": {"epochsPerPhase": 1},
    "model.vocabulary": {"learn": 8},
    "data.validation": {"fraction": 0.2},
    "data.test": {"fraction": 0.2},
    "data.cleaning.quality.maxWords": 60,
    "data.cleaning.quality.maxMeanWordLength": 6.0,
    "data.cleaning.quality.maxTopNgrams": [0.1] * 3,
    "data.cleaning.quality.maxDuplicateNgrams": [0.1] * 6,
    "data.fewShot": {"perClass": 8},
    "data.augmentation": {"methods": ["WordSwap"]},
    "data.augmentation.methods[]": "WordSwap",
    "data.augmentation.methods": ["WordSwap"],
    "evaluation.promote.thresholds[]": {"metric": "Loss", "max": 1},
    "evaluation.promote.mlflow": {"model": "x", "trackingUri": _SERVER},
    "deepspeed.config": {"steps_per_print": 7},
    "schedule.cron": "0 3 * * SUN",
    "schedule.timeZone": "Europe/Berlin",
    "workers.env[].valueFrom": {"secretKeyRef": _SELECTOR},
    "workers.gpuResource": "amd.com/gpu",
    "workers.gpuMemory": "80Gi",
    **{f"{block}.{field}": value for block in POD_BLOCKS for field, value in _POD_VALUES.items()},
}
"""Valid values that cannot be derived from the type."""
_VARIABLE: dict[str, Any] = {"name": "X"}
_SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
_POD_AROUND: dict[str, Any] = {
    "tolerations[]": {"tolerations": [_TOLERATION]},
    "topologySpreadConstraints[]": {"topologySpreadConstraints": [_SPREAD]},
    "volumes[]": {"volumes": [{"name": "x"}]},
    "volumes[].name": {"volumes": [{"emptyDir": {}}]},
    "volumeMounts": {"volumes": [{"name": "x", "emptyDir": {}}]},
    "volumeMounts[]": {"volumes": [{"name": "x", "emptyDir": {}}], "volumeMounts": [_MOUNT]},
    "envFrom[].prefix": {"envFrom": [{"secretRef": {"name": "x"}}]},
    "envFrom[].secretRef.": {"envFrom": [{"secretRef": {"name": "x"}}]},
    "envFrom[].configMapRef.": {"envFrom": [{"configMapRef": {"name": "x"}}]},
}


def _within(path: str, value: Any) -> Any:
    """`_within("a.b", 1)` is `{"a": {"b": 1}}`."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


_AROUND: dict[str, Any] = {
    "evaluation.promote.mlflow.": {"evaluation": {"promote": {"mlflow": {"model": "x", "trackingUri": _SERVER}}}},
    "tracking.mlflow.": {"tracking": {"mlflow": {"trackingUri": _SERVER, "experiment": "x"}}},
    "tracking.trackio.": {"tracking": {"trackio": {"serverUrl": _SERVER, "project": "x"}}},
    "tracking.wandb.": {"tracking": {"wandb": {"project": "x"}}},
    "tracking.wandb.baseUrl": {"tracking": {"wandb": {"project": "x", "mode": "Online"}}},
    "data.validation.stratify": {"data": {"validation": {"fraction": 0.2}}},
    "data.test.stratify": {"data": {"test": {"fraction": 0.2}}},
    "data.validation.groupBy": {"data": {"validation": {"fraction": 0.2}, "test": {"fraction": 0.0}}},
    "data.test.groupBy": {"data": {"validation": {"fraction": 0.0}, "test": {"fraction": 0.2}}},
    "data.augmentation.": {"data": {"augmentation": {"methods": ["WordSwap"]}}},
    "data.augmentation.synonyms": {"data": {"augmentation": {"methods": ["Synonym"]}}},
    "data.augmentation.synonyms.": {
        "data": {"augmentation": {"methods": ["Synonym"], "synonyms": {"uri": "s3://bucket/x"}}}
    },
    "evaluation.promote.maxRegression": {"evaluation": {"regressionSets": [_SET]}},
    "evaluation.regressionSets[].": {"evaluation": {"regressionSets": [_SET]}},
    "evaluation.promote.thresholds[].": {"evaluation": {"promote": {"thresholds": [{"metric": "Loss", "max": 1}]}}},
    "method.full.freeze.": {"method": {"full": {"freeze": {"firstLayers": 1}}}},
    "method.full.pruning.": {"method": {"full": {"pruning": {"algorithm": "Magnitude", "sparsity": 0.5}}}},
    "method.full.pruning.layers": {"method": {"full": {"pruning": {"algorithm": "DropLayers"}}}},
    "method.full.gradualUnfreezing.": {"method": {"full": {"gradualUnfreezing": {"epochsPerPhase": 1}}}},
    "method.full.gradualUnfreezing.stepsPerPhase": {"method": {"full": {"gradualUnfreezing": {}}}},
    **{f"method.{method}": needed_with(method) for method in SUPPORT.methods},
    "model.quantization": {"method": {"lora": {}}},
    "output.compressedTensors": {"output": {"formats": ["CompressedTensors"]}},
    "output.gguf": {"output": {"formats": ["GGUF"]}, "data": {"format": "Text"}},
    "schedule.": {"schedule": {"cron": "0 3 * * SUN"}},
    "training.scheduleOptions.power": {"training": {"learningRateSchedule": "Polynomial"}},
    "training.scheduleOptions.cycles": {"training": {"learningRateSchedule": "CosineWithRestarts"}},
    "training.scheduleOptions.decayRatio": {"training": {"learningRateSchedule": "WarmupStableDecay"}},
    "training.scheduleOptions.factor": {"training": {"learningRateSchedule": "ReduceOnPlateau"}},
    "training.scheduleOptions.patience": {"training": {"learningRateSchedule": "ReduceOnPlateau"}},
    "workers.startTimeout": {"workers": {"minNodes": 1}},
    "workers.gpuMemory": {"workers": {"gpusPerNode": 1}},
    **{f"{block}.{field}": _within(block, around) for block in POD_BLOCKS for field, around in _POD_AROUND.items()},
    "workers.env[]": {"workers": {"env": [_VARIABLE]}},
    **{
        f"workers.env[].valueFrom.{kind}.": {"workers": {"env": [{**_VARIABLE, "valueFrom": {kind: _SELECTOR}}]}}
        for kind in ("secretKeyRef", "configMapKeyRef")
    },
}
"""Prefix of a path -> other fields that its job needs; the longest match applies."""


@dataclass(frozen=True)
class FieldCase:
    """A job, and whether it is valid."""

    path: str
    what: str
    manifest: Manifest
    is_valid: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def field_cases() -> Iterator[FieldCase]:
    """For every field: a valid value, wrong types, a misspelled name and, if different, the snake-case name."""
    for path, node in _fields(structural_schema(Spec)):
        value = _right_value(path, node)
        name = path.split(".")[-1]
        yield FieldCase(path, "right", _job(path, name, value), is_valid=True)
        for wrong in _wrong_values(node):
            yield FieldCase(path, f"wrong value {wrong!r}", _job(path, name, wrong), is_valid=False)
        yield FieldCase(path, "misspelt", _job(path, f"{name}x", value), is_valid=False)
        snake = re.sub(r"([A-Z])", lambda match: f"_{match[1].lower()}", name)
        if snake != name:
            yield FieldCase(path, "snake case", _job(path, snake, value), is_valid=False)


_METADATA: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("labels", {"labels": {"team": "a", "example.com/Team_1": ""}}, True),
    ("labels", {"labels": {"a": 1}}, False),
    ("labels", {"labels": {"a": True}}, False),
    ("labels", {"labels": ["a"]}, False),
    ("labels", {"labels": "a"}, False),
    ("labels", {"labels": {"a": "x y"}}, False),
    ("labels", {"labels": {"a": "x" * 64}}, False),
    ("labels", {"labels": {"-a": "x"}}, False),
    ("labels", {"labels": {"Example.com/a": "x"}}, False),
    ("annotations", {"annotations": {"example.com/note": "any text; 1"}}, True),
    ("annotations", {"annotations": {"a": True}}, False),
    ("annotations", {"annotations": {"a": {}}}, False),
    ("annotations", {"annotations": ["a"]}, False),
    ("annotations", {"annotations": {"a b": "x"}}, False),
    ("annotations", {"annotations": {"a": "x" * (256 * 1024)}}, False),
    ("nmae", {"nmae": "x"}, False),
    ("label", {"label": {"a": "b"}}, False),
    ("name", {"name": 123}, False),
    ("name", {"name": ["x"]}, False),
    ("name", {"name": "A"}, False),
)
"""Field, metadata in addition to name and namespace, and whether it is valid."""


def metadata_cases() -> Iterator[FieldCase]:
    """Metadata that users write."""
    for field, values, is_valid in _METADATA:
        manifest = make_job()
        manifest["metadata"] = manifest["metadata"] | copy.deepcopy(values)
        shown = str(values)
        yield FieldCase(f"metadata.{field}", shown if len(shown) < 99 else f"{shown[:99]}...", manifest, is_valid)


def _fields(schema: Schema, prefix: str = "") -> Iterator[tuple[str, Schema]]:
    for name, node in schema.get("properties", {}).items():
        yield f"{prefix}{name}", node
        yield from _fields(node, f"{prefix}{name}.")
        yield from _fields(node.get("items", {}), f"{prefix}{name}[].")


def _right_value(path: str, node: Schema) -> Any:
    if path in _VALUES:
        return copy.deepcopy(_VALUES[path])
    if "enum" in node:
        return node["enum"][0]
    match node.get("type"):
        case "array":
            return [_right_value(f"{path}[]", node["items"])]
        case "object":
            return {name: _right_value(f"{path}.{name}", node["properties"][name]) for name in node.get("required", ())}
        case "boolean":
            return True
        case "integer":
            return node.get("minimum", 1)
        case "number":
            return max(node.get("minimum", 0.0), 1e-3)
        case _:
            return next(text for text in _TEXTS if re.search(node.get("pattern", ""), text))


def _wrong_values(node: Schema) -> tuple[Any, ...]:
    if "enum" in node:
        return ("nope", 7)
    match node.get("type"):
        case "array":
            return ({}, "x", [7])
        case "object":
            return ([], "x", 7)
        case "boolean":
            return ("true", 1)
        case "integer":
            return ("3", 2.5, True, node.get("minimum", 0) - 1)
        case "number":
            return ("0.1", True, *([node["minimum"] - 1] if "minimum" in node else []))
        case "string":
            return (7, True, {}, [])
        case _:  # a quantity
            return (True, {}, {"x": 1}, [], ["1"], "many", -1)


def _job(path: str, name: str, value: Any) -> Manifest:
    """The smallest job with one field set. A field of a list entry is set in its only entry."""
    manifest = make_job(data={"format": None})
    around = max((start for start in _AROUND if path.startswith(start)), key=len, default="")
    manifest["spec"] = copy.deepcopy(merged(manifest["spec"], _AROUND.get(around, {})))
    *parents, last = path.split(".")
    block = manifest["spec"]
    for part in parents:
        key = part.removesuffix("[]")
        block = block.setdefault(key, [{}])[0] if part.endswith("[]") else block.setdefault(key, {})
    block.pop(last, None)
    block[name] = copy.deepcopy(value)
    return manifest
