"""Models -> CustomResourceDefinition: a structural schema with CEL rules and printer columns. Pure.

`_structural` converts the schema that pydantic generates to one that the API server accepts. Rules that only CEL can
express are listed here by the path that they apply to.
"""

from collections.abc import Iterable
from typing import Any

from .constants import (
    CATEGORIES,
    GROUP,
    JOB_NAME_PATTERN,
    KIND,
    MAX_JOB_NAME,
    PLURAL,
    RESERVED_DOMAINS,
    RESERVED_KEYS,
    RESERVED_PREFIX,
    RESERVED_VARIABLES,
    SHORT_NAMES,
    SINGULAR,
    UNOBSERVED_GENERATION,
    VERSION,
    VOLUMES,
)
from .support import SUPPORT
from .v1alpha1 import (
    ArtifactFormat,
    DataFormat,
    FineTuneJob,
    Method,
    OverfittingAction,
    PruningAlgorithm,
    ScheduleOptions,
    Spec,
    Status,
    Volume,
)
from .v1alpha1.data import MAY_BE_SEVERAL_WORDS
from .v1alpha1.pod import POD_BLOCKS
from .v1alpha1.training import SCHEDULES_WITH

Schema = dict[str, Any]

_METHODS = tuple(Method.blocks())
_VOLUME_SOURCES = tuple(field.alias for name, field in Volume.model_fields.items() if name != "name")


def _one_of(names: Iterable[str | None]) -> str:
    """CEL rule: exactly one of these fields is set."""
    return f"[{', '.join(f'has(self.{name})' for name in names)}].exists_one(is_set, is_set)"


_RESERVED = (
    (
        f"self.all(key, !(key in {sorted(RESERVED_KEYS)}) && "
        + " && ".join(f"!key.startsWith('{domain}/')" for domain in sorted(RESERVED_DOMAINS))
        + ")",
        "must not have keys that the operator and Jobs of Kubernetes set; remove them, or use other keys",
    ),
)


def _schedule_options() -> Iterable[tuple[str, str]]:
    """CEL rules: an option of a schedule is set only with the schedules that use it."""
    for name, schedules in SCHEDULES_WITH.items():
        field, values = ScheduleOptions.model_fields[name].alias, [schedule.value for schedule in schedules]
        yield (
            f"!has(self.scheduleOptions) || !has(self.scheduleOptions.{field})"
            f" || self.learningRateSchedule in {values}",
            f"scheduleOptions.{field} must be absent with a learningRateSchedule other than "
            f"{', '.join(values)}; remove it",
        )


CEL_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        (
            f"size(self.metadata.name) <= {MAX_JOB_NAME}",
            f"metadata.name must have at most {MAX_JOB_NAME} characters, because the names of pods are derived from "
            "it; shorten it",
        ),
        (
            f"self.metadata.name.matches('{JOB_NAME_PATTERN}')",
            "metadata.name must be a name of a-z, 0-9 and '-', because the names of pods are derived "
            "from it; rename the "
            "job",
        ),
    ),
    "spec.method": ((_one_of(_METHODS), f"must have exactly one of {', '.join(_METHODS)}; keep one block"),),
    "spec.training": (
        ("!has(self.epochs) || !has(self.maxSteps)", "must not have both epochs and maxSteps; keep one"),
        *_schedule_options(),
    ),
    "spec.method.full.freeze": (
        (
            "(has(self.embeddings) && self.embeddings) || has(self.firstLayers) || "
            "(has(self.patterns) && self.patterns.size() > 0)",
            "must have at least one of embeddings, firstLayers, patterns; write one of them, or remove freeze",
        ),
    ),
    "spec.method.full.pruning": (
        (
            f"(self.algorithm == '{PruningAlgorithm.DROP_LAYERS}') == has(self.layers)",
            f"must have layers with the algorithm {PruningAlgorithm.DROP_LAYERS}, and only with it; "
            "add or remove layers",
        ),
        (
            f"(self.algorithm == '{PruningAlgorithm.DROP_LAYERS}') != has(self.sparsity)",
            f"must have sparsity with the algorithms {PruningAlgorithm.MAGNITUDE} and {PruningAlgorithm.WANDA}, and "
            "only with them; add or remove sparsity",
        ),
    ),
    "spec.method.full.gradualUnfreezing": (
        (
            "has(self.epochsPerPhase) != has(self.stepsPerPhase)",
            "must have exactly one of epochsPerPhase, stepsPerPhase; write one of them",
        ),
    ),
    "spec.workers": (
        (
            "!has(self.minNodes) || self.minNodes <= self.nodes",
            "minNodes must be at most nodes; lower it, or raise nodes",
        ),
        (
            "!has(self.startTimeout) || has(self.minNodes)",
            "startTimeout must be absent without minNodes; remove it, or set minNodes too",
        ),
    ),
    "spec.workers.env[]": (
        ("!has(self.value) || !has(self.valueFrom)", "must not have both value and valueFrom; keep one"),
        (
            f"!self.name.startsWith('{RESERVED_PREFIX}') && !(self.name in {sorted(RESERVED_VARIABLES)})",
            f"name must not be a variable that the operator sets: {', '.join(sorted(RESERVED_VARIABLES))} and all that "
            f"begin with {RESERVED_PREFIX}; remove the entry",
        ),
    ),
    "spec.workers.env[].valueFrom": (
        (
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "must have exactly one of secretKeyRef, configMapKeyRef; keep one",
        ),
    ),
    **{
        f"spec.{block}.{field}": rules
        for block in POD_BLOCKS
        for field, rules in {
            "volumes[]": (
                (_one_of(_VOLUME_SOURCES), "must have exactly one source, such as persistentVolumeClaim; keep one"),
                (
                    f"!(self.name in {list(VOLUMES)})",
                    f"name must not be {', '.join(VOLUMES)}, which the operator uses; write another name",
                ),
            ),
            "envFrom[]": (
                (
                    "has(self.secretRef) != has(self.configMapRef)",
                    "must have exactly one of secretRef, configMapRef; keep one",
                ),
            ),
            "labels": _RESERVED,
            "annotations": _RESERVED,
        }.items()
    },
    "spec.storage": (
        (
            "!has(self.endpoint) || !self.endpoint.matches('^https?://[^/]*@')",
            "endpoint must not contain a user name or password; put them into a Secret and name it "
            "in credentialsSecret",
        ),
    ),
    "spec.evaluation": (
        (
            "!has(self.promote) || !has(self.promote.minGainOverBaseModel) || self.baseModel",
            "promote.minGainOverBaseModel must be absent if the base model is not evaluated; remove it, or set "
            "baseModel to true",
        ),
    ),
    "spec.evaluation.promote.thresholds[]": (
        ("has(self.min) || has(self.max)", "must have at least one of min, max; write one of them"),
        (
            "!has(self.min) || !has(self.max) || self.min <= self.max",
            "min must be at most max; exchange them, or remove one",
        ),
    ),
    "spec.training.warmup": (("!has(self.ratio) || !has(self.steps)", "must not have both ratio and steps; keep one"),),
    "spec.checkpoint": (
        ("!has(self.maxLostWork) || !has(self.everySteps)", "must not have both maxLostWork and everySteps; keep one"),
    ),
    "spec.data": (
        (
            "(has(self.validation.fraction) ? self.validation.fraction : 0.0) + "
            "(has(self.test.fraction) ? self.test.fraction : 0.0) < 1.0",
            "must leave data to train on; lower validation.fraction and test.fraction so that their sum is less than 1",
        ),
        (
            "!has(self.validation.fraction) || self.validation.fraction == 0.0 || "
            "!has(self.test.fraction) || self.test.fraction == 0.0 || "
            "(has(self.validation.groupBy) ? self.validation.groupBy : '') == "
            "(has(self.test.groupBy) ? self.test.groupBy : '')",
            "validation.groupBy and test.groupBy must be the same column, so that no group is in two splits; "
            "set both to the same, or set the fraction of one to 0",
        ),
        (
            "!self.cleaning.testOverlap || !has(self.validation.fraction) || self.validation.fraction > 0.0 || "
            "!has(self.test.fraction) || self.test.fraction > 0.0",
            "cleaning.testOverlap must be false without held-out records; remove it, or set validation or test",
        ),
        (
            f"!has(self.format) || self.format != '{DataFormat.TOKEN_CLASSIFICATION}' || "
            f"!self.cleaning.redact.exists(kind, kind in {[str(kind) for kind in MAY_BE_SEVERAL_WORDS]})",
            f"cleaning.redact must not have {', '.join(MAY_BE_SEVERAL_WORDS)} with the format "
            f"{DataFormat.TOKEN_CLASSIFICATION}; remove them",
        ),
        (
            f"!has(self.cleaning.quality) || !has(self.format) || self.format == '{DataFormat.TEXT}'",
            f"cleaning.quality must be absent with a format other than {DataFormat.TEXT}; remove it",
        ),
    ),
    "spec.data.cleaning": (
        (
            "!has(self.minChars) || !has(self.maxChars) || self.minChars <= self.maxChars",
            "minChars must be at most maxChars; lower it, or raise maxChars",
        ),
    ),
    "spec.data.cleaning.quality": (
        ("self.minWords <= self.maxWords", "minWords must be at most maxWords; lower it, or raise maxWords"),
        (
            "self.minMeanWordLength <= self.maxMeanWordLength",
            "minMeanWordLength must be at most maxMeanWordLength; lower it, or raise maxMeanWordLength",
        ),
    ),
    "spec.data.augmentation": (
        (
            "('Synonym' in self.methods) == has(self.synonyms)",
            "must have both the method Synonym and synonyms, or neither; add or remove one of them",
        ),
    ),
    "spec.model.vocabulary": (
        (
            "has(self.learn) || (has(self.add) && size(self.add) > 0)",
            "must have at least one of add, learn; write one of them, or remove vocabulary",
        ),
    ),
    "spec.data.fewShot": (
        ("has(self.perClass) != has(self.examples)", "must have exactly one of perClass, examples; keep one"),
    ),
    "spec.data.validation": (
        ("has(self.sources) != has(self.fraction)", "must have exactly one of sources, fraction; keep one"),
        ("!has(self.stratify) || has(self.fraction)", "stratify must be absent without fraction; remove it"),
        (
            "!has(self.groupBy) || (has(self.fraction) && self.fraction > 0.0)",
            "groupBy must be absent unless fraction is above 0; remove it",
        ),
        (
            "!has(self.groupBy) || !has(self.stratify) || !self.stratify",
            "stratify must not be true with groupBy; remove it",
        ),
    ),
    "spec.data.test": (
        ("has(self.sources) != has(self.fraction)", "must have exactly one of sources, fraction; keep one"),
        ("!has(self.stratify) || has(self.fraction)", "stratify must be absent without fraction; remove it"),
        (
            "!has(self.groupBy) || (has(self.fraction) && self.fraction > 0.0)",
            "groupBy must be absent unless fraction is above 0; remove it",
        ),
        (
            "!has(self.groupBy) || !has(self.stratify) || !self.stratify",
            "stratify must not be true with groupBy; remove it",
        ),
    ),
    "spec": (
        (
            "self.training.globalBatchSize % (self.workers.nodes * "
            "(self.workers.gpusPerNode > 0 ? self.workers.gpusPerNode : 1)) == 0",
            "training.globalBatchSize must be divisible by the number of training processes; change "
            "it, or workers.nodes",
        ),
        *SUPPORT.cel_rules(),
        (
            "!has(self.training.earlyStopping) || self.checkpoint.keepBest >= 1",
            "checkpoint.keepBest must be at least 1 with early stopping, which exports the best checkpoint; write 1",
        ),
        (
            f"!has(self.training.overfitting) || self.training.overfitting.action != '{OverfittingAction.STOP}' || "
            "self.checkpoint.keepBest >= 1",
            "checkpoint.keepBest must be at least 1 with training.overfitting.action Stop, which exports the best "
            "checkpoint; write 1",
        ),
        (
            "!has(self.training.overfitting) || !has(self.data.validation.fraction) || "
            "self.data.validation.fraction > 0.0",
            "data.validation.fraction must be above 0 with training.overfitting, which needs a "
            "validation split; set it",
        ),
        (
            "!has(self.evaluation.promote) || !has(self.data.test.fraction) || self.data.test.fraction > 0.0",
            "data.test.fraction must be above 0 with evaluation.promote, which needs a test split; "
            "set it, or remove promote",
        ),
        (
            f"!has(self.evaluation.promote) || '{ArtifactFormat.MERGED}' in self.output.formats",
            f"output.formats must have {ArtifactFormat.MERGED} with evaluation.promote, which needs a "
            "complete model; add it, or remove promote",
        ),
        (
            f"!has(self.output.gguf) || '{ArtifactFormat.GGUF}' in self.output.formats",
            f"output.gguf must be absent without {ArtifactFormat.GGUF} in output.formats; remove it, or add it there",
        ),
        (
            f"!has(self.output.compressedTensors) || '{ArtifactFormat.COMPRESSED_TENSORS}' in self.output.formats",
            f"output.compressedTensors must be absent without {ArtifactFormat.COMPRESSED_TENSORS} in output.formats; "
            "remove it, or add it there",
        ),
    ),
}
"""Path -> (rule, message). `rules.py` has the same rules, and more, for `finetune validate` and the operator.
Rules about combinations come from the support table."""

PRINTER_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("Progress", "string", ".status.display.progress", 0),
    ("Loss", "string", ".status.display.loss", 0),
    ("Eta", "string", ".status.display.eta", 0),
    ("Restarts", "integer", ".status.run.restarts", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Run", "integer", ".status.run.number", 1),
    ("Checkpoint-Age", "date", ".status.run.lastCheckpoint.time", 1),
    ("Nodes", "integer", ".spec.workers.nodes", 1),
    ("Model", "string", ".spec.model.uri", 1),
)
"""Name, type, JSON path, priority (1: only with `-o wide`)."""

_DROPPED = frozenset({"title", "$defs", "propertyNames"})
_REWRITTEN = frozenset({"const", "description", "default", "properties", "items", "additionalProperties"})


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition of FineTuneJob."""
    schema: Schema = {
        "type": "object",
        "description": FineTuneJob.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(Spec),
            "status": structural_schema(Status, with_defaults=False)
            | {
                # Not pruned: the operator must receive a status in the flat shape of earlier versions to migrate it.
                "x-kubernetes-preserve-unknown-fields": True,
                # kstatus considers an object without status as current.
                "default": {"observedGeneration": UNOBSERVED_GENERATION},
            },
        },
    }
    for path, rules in CEL_RULES.items():
        target = schema
        for part in path.replace("[]", ".[]").split(".") if path else ():
            target = target["items"] if part == "[]" else target["properties"][part]
        target["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]
    columns = [
        {"name": name, "type": kind, "jsonPath": json_path} | ({"priority": priority} if priority else {})
        for name, kind, json_path, priority in PRINTER_COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": list(SHORT_NAMES),
                "categories": list(CATEGORIES),
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def structural_schema(model: type[Spec] | type[Status], *, with_defaults: bool = True) -> Schema:
    """Return the JSON schema of a model as a structural schema of Kubernetes."""
    raw = model.model_json_schema(by_alias=True)
    return _structural(raw, raw.get("$defs", {}), with_defaults=with_defaults)


def _structural(node: Schema, definitions: dict[str, Schema], *, with_defaults: bool) -> Schema:
    """Inline references, replace `anyOf [X, null]` by X, and remove nulls and `additionalProperties: false`.

    Pruning in the API server has the effect of the latter.
    """

    def child(value: Schema, *, with_defaults: bool = with_defaults) -> Schema:
        return _structural(value, definitions, with_defaults=with_defaults)

    node = _resolve(node, definitions)
    result: Schema = {key: value for key, value in node.items() if key not in _DROPPED | _REWRITTEN}
    if "const" in node:  # a Literal with one value
        result["enum"] = [node["const"]]
    if "description" in node:
        result["description"] = " ".join(node["description"].split())
    if with_defaults and node.get("default") is not None:
        result["default"] = _without_nulls(node["default"])
    if node.get("properties"):
        result["properties"] = {name: child(value) for name, value in node["properties"].items()}
    if "items" in node:
        # No defaults in list entries, because GitOps tools compare the elements of lists with the applied manifest.
        result["items"] = child(node["items"], with_defaults=False)
    values = node.get("additionalProperties")
    if values is True:
        result["x-kubernetes-preserve-unknown-fields"] = True
    elif isinstance(values, dict):
        result["additionalProperties"] = child(values, with_defaults=False)
    return result


def _resolve(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Follow `$ref` and unwrap Optional; siblings of the reference (description, default) win."""
    siblings = {key: value for key, value in node.items() if key not in {"$ref", "anyOf"}}
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        return _resolve(target, definitions) | siblings
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a field must have one type in a structural schema, not {len(options)}: {node}")
        return _resolve(options[0], definitions) | siblings
    return node


def _without_nulls(value: Any) -> Any:
    """Return a default that the API server accepts: absent fields are omitted instead of null."""
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return value
