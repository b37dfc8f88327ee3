"""Validation rules that involve several fields. Pure.

Every check returns all violations at once, each with the path of the field and how to correct it.
"""

import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from . import constants
from .constants import RESERVED_PREFIX, RESERVED_VARIABLES
from .cron import schedule_errors
from .redaction import has_credentials
from .support import DTYPE_ZERO_STAGES, NEW_TOKEN_ZERO_STAGES, OFFLOAD_ZERO_STAGES, SUPPORT
from .v1alpha1 import (
    METRIC_SUPPORT,
    TASK_SUPPORT,
    ArtifactFormat,
    AugmentationMethodName,
    DataFormat,
    Dtype,
    Holdout,
    Offload,
    OverfittingAction,
    PodSettings,
    PruningAlgorithm,
    Schedule,
    ScheduleOptions,
    Spec,
    Task,
    Threshold,
    Toleration,
    TopologySpread,
    VolumeMount,
    WandBMode,
)
from .v1alpha1.data import MAY_BE_SEVERAL_WORDS, UNSPACED_LANGUAGES
from .v1alpha1.methods.lora import LoraInit, LoraVariant
from .v1alpha1.pod import KEY_PATTERN, POD_BLOCKS
from .v1alpha1.quantities import amount, seconds
from .v1alpha1.training import SCHEDULE_DEFAULTS, SCHEDULES_WITH

Entry = TypeVar("Entry")
_MIN_POLL_SECONDS = 60
_PER_GPU = " per GPU"
_ROUNDING = 1e-9
"""Of the sum of two shares."""
_MIN_GPU_BYTES, _MAX_GPU_BYTES = 2**30, 2**40


@dataclass(frozen=True)
class Violation:
    """A rule that an object violates."""

    path: str
    """Field path, such as `spec.training.learningRate`."""
    message: str
    """What the field must be, its value, and how to correct it."""

    def __str__(self) -> str:
        """`spec.training.epochs must be at least 1, not 0`."""
        return f"{self.path}{' ' if self.message.startswith('must ') else ': '}{self.message}"


def violations(spec: Spec, *, local: bool = False) -> tuple[Violation, ...]:
    """Return all violations of a spec. `local` allows `file://` addresses, which the nodes of a cluster cannot read."""
    checks: list[Callable[[Spec], Iterator[Violation]]] = [
        _method,
        _support,
        _freeze,
        _pruning,
        _gradual_unfreezing,
        _lora_init,
        _set_fit,
        _preference,
        _vocabulary,
        _unclear_paths,
        _no_credentials,
        _model_registry,
        _wandb,
        _trackio,
        _env,
        _pod_settings,
        _gpus,
        _lengths,
        _warmup,
        _schedule_options,
        _chunked_loss,
        _checkpointed_layers,
        _holdouts,
        _cleaning,
        _few_shot,
        _weights,
        _augmentation,
        _train_on_inputs,
        _batch,
        _fewest_workers,
        _early_stopping,
        _promotion,
        _regression_sets,
        _output,
        _schedule,
        _poll,
        _owned_deepspeed_keys,
    ]
    if not local:
        checks.append(_no_local_files)
    return tuple(violation for check in checks for violation in check(spec))


def cluster_only(spec: Spec) -> tuple[Violation, ...]:
    """Return violations for the fields that only a cluster supports and `finetune run` does not."""
    return tuple(_cluster_only(spec))


def _cluster_only(spec: Spec) -> Iterator[Violation]:
    for index, variable in enumerate(spec.workers.env):
        if variable.value_from is not None:
            yield Violation(
                f"spec.workers.env[{index}].valueFrom",
                "must be absent in `finetune run`, which has no Secrets or ConfigMaps; remove the entry and set "
                f"{variable.name} in the environment of the command",
            )
    for path, pod in _pods(spec):
        if pod.env_from:
            yield Violation(
                f"{path}.envFrom",
                "must be absent in `finetune run`, which has no Secrets or ConfigMaps; remove it and set the variables "
                "in the environment of the command",
            )
        if pod.volumes:
            yield Violation(
                f"{path}.volumes",
                "must be absent in `finetune run`, whose processes use the folders of the machine; remove it and "
                "volumeMounts",
            )


def task_of(spec: Spec) -> Task | None:
    """The task that the spec names or its data format implies; None if it depends on the data."""
    return SUPPORT.task_of(spec)


OWNED_DEEPSPEED_KEYS: dict[str, str] = {
    "train_batch_size": "spec.training.globalBatchSize",
    "train_micro_batch_size_per_gpu": "spec.training.microBatchSize",
    "gradient_accumulation_steps": "spec.training.globalBatchSize and microBatchSize",
    "gradient_clipping": "spec.training.maxGradNorm",
    "optimizer": "spec.training.optimizer, learningRate and weightDecay",
    "scheduler": "spec.training.learningRateSchedule, scheduleOptions and warmup",
    "fp16": "spec.model.dtype",
    "bf16": "spec.model.dtype",
    "zero_optimization.stage": "spec.deepspeed.zeroStage",
    "zero_optimization.offload_optimizer": "spec.deepspeed.offload",
    "zero_optimization.offload_param": "spec.deepspeed.offload",
    "activation_checkpointing": "spec.training.gradientCheckpointing",
    "checkpoint": "spec.checkpoint",
    "elasticity": "spec.workers.nodes",
    # DeepSpeed's own reports wait for the server, and may send metrics elsewhere.
    "wandb": "spec.tracking.wandb",
    "comet": "spec.tracking",
    "tensorboard": "spec.tracking.tensorBoard",
    "csv_monitor": "spec.tracking",
}
"""Keys of the DeepSpeed configuration that the job sets -> the spec field that determines the value."""


def _method(spec: Spec) -> Iterator[Violation]:
    given = list(spec.method.given)
    if len(given) != 1:
        known = ", ".join(spec.method.blocks())
        found = "none" if not given else "both" if len(given) == 2 else f"{len(given)} of them"
        yield Violation("spec.method", f"must have exactly one of {known}, not {found}; keep one block")


def _support(spec: Spec) -> Iterator[Violation]:
    """Combinations that the support table does not contain."""
    yield from (Violation(path, message) for path, message in SUPPORT.refusals(spec))


def _freeze(spec: Spec) -> Iterator[Violation]:
    freeze = None if spec.method.full is None else spec.method.full.freeze
    if freeze is not None and not (freeze.embeddings or freeze.first_layers or freeze.patterns):
        yield Violation(
            "spec.method.full.freeze",
            "must have at least one of embeddings, firstLayers, patterns; write one of them, or remove freeze",
        )


_PRUNING_SETTINGS = {
    PruningAlgorithm.MAGNITUDE: "sparsity",
    PruningAlgorithm.WANDA: "sparsity",
    PruningAlgorithm.DROP_LAYERS: "layers",
}
"""Algorithm -> the field of `spec.method.full.pruning` that says how much it removes."""


def _pruning(spec: Spec) -> Iterator[Violation]:
    pruning = spec.method.pruning
    if pruning is None:
        return
    path, needed = "spec.method.full.pruning", _PRUNING_SETTINGS[pruning.algorithm]
    if getattr(pruning, needed) is None:
        yield Violation(f"{path}.{needed}", f"must be set for the algorithm {pruning.algorithm}; write a value")
    for other in sorted({*_PRUNING_SETTINGS.values()} - {needed}):
        if getattr(pruning, other) is not None:
            fitting = " or ".join(name for name, field in _PRUNING_SETTINGS.items() if field == other)
            yield Violation(
                f"{path}.{other}",
                f"must be absent for the algorithm {pruning.algorithm}; remove it, or write algorithm: {fitting}",
            )


def _gradual_unfreezing(spec: Spec) -> Iterator[Violation]:
    phases = None if spec.method.full is None else spec.method.full.gradual_unfreezing
    if phases is not None and (phases.epochs_per_phase is None) == (phases.steps_per_phase is None):
        found = "none" if phases.epochs_per_phase is None else "both"
        yield Violation(
            "spec.method.full.gradualUnfreezing",
            f"must have exactly one of epochsPerPhase, stepsPerPhase, not {found}; write one of them",
        )


def _lora_init(spec: Spec) -> Iterator[Violation]:
    lora, path = spec.method.lora, "spec.method.lora.init"
    if lora is None or lora.init is not LoraInit.PISSA:
        return
    if lora.variant is not LoraVariant.LORA:
        yield Violation(
            path,
            f"must not be PiSSA with variant {lora.variant}, whose update the exported adapter of twice the rank would "
            "not have; remove init or variant",
        )
    if spec.model.quantization is not None:
        yield Violation(
            path,
            "must not be PiSSA with spec.model.quantization, because its singular vectors are taken out of the "
            "unquantized matrices; remove one of them",
        )


def _set_fit(spec: Spec) -> Iterator[Violation]:
    if spec.method.set_fit is None:
        return
    if spec.training.label_smoothing:
        yield Violation(
            "spec.training.labelSmoothing",
            "must be 0 with spec.method.setFit, which trains on pairs of texts, not "
            f"{spec.training.label_smoothing:g}; remove it",
        )
    if spec.data.few_shot is not None and spec.data.few_shot.per_class == 1:
        yield Violation(
            "spec.data.fewShot.perClass",
            "must be at least 2 with spec.method.setFit, which needs pairs with the same label, not 1; write 8",
        )
    if spec.training.overfitting is not None:
        yield Violation(
            "spec.training.overfitting",
            "must be absent with spec.method.setFit, whose training loss is that of pairs and cannot be compared with "
            "the validation loss; remove it, or use spec.training.earlyStopping",
        )


def _preference(spec: Spec) -> Iterator[Violation]:
    task = task_of(spec)
    if task is not Task.PREFERENCE:
        if spec.training.dpo is not None and task is not None:
            yield Violation(
                "spec.training.dpo",
                f"must be absent with task {task}; remove it, or set spec.model.task to Preference",
            )
        return
    lora = spec.method.lora
    refused = {
        "spec.model.quantization": (
            spec.model.quantization is not None,
            "must be absent with task Preference, because the reference would be the quantized base model, and the "
            "exported adapter is merged into another one; remove it",
        ),
        "spec.model.vocabulary": (
            spec.model.vocabulary is not None,
            "must be absent with task Preference, because the base model without the adapter does not know the new "
            "tokens; remove it, or train them with task CausalLM first and use the exported model here",
        ),
        "spec.method.lora.init": (
            lora is not None and lora.init is LoraInit.PISSA,
            "must be Kaiming or Gaussian with task Preference, not PiSSA, which changes the base model that the "
            "reference is; remove it",
        ),
        "spec.training.labelSmoothing": (
            bool(spec.training.label_smoothing),
            f"must be 0 with task Preference, not {spec.training.label_smoothing:g}; remove it",
        ),
        "spec.training.overfitting": (
            spec.training.overfitting is not None,
            "must be absent with task Preference, whose training loss compares the model with the base model and "
            "cannot be compared with the validation loss; remove it, or use spec.training.earlyStopping",
        ),
    }
    yield from (Violation(path, message) for path, (applies, message) in refused.items() if applies)


def _vocabulary(spec: Spec) -> Iterator[Violation]:
    vocabulary, path = spec.model.vocabulary, "spec.model.vocabulary"
    if vocabulary is None:
        return
    if task_of(spec) is Task.MASKED_LM:
        yield Violation(
            path,
            "must be absent with task MaskedLM, because base model and trained model would be asked for different "
            "masked tokens; remove it",
        )
    if not vocabulary.add and vocabulary.learn is None:
        yield Violation(path, "must have at least one of add, learn; write one of them, or remove vocabulary")
    yield from _repeated(vocabulary.add, f"{path}.add", "word")
    for index, word in enumerate(vocabulary.add):
        # Separators, control characters, invisible characters, and code points without a meaning.
        if any(unicodedata.category(character)[0] in "ZC" for character in word):
            yield Violation(
                f"{path}.add[{index}]",
                "must not have spaces, control characters or invisible characters; remove them, or the word",
            )
    if spec.method.lora is not None:
        yield from _new_tokens_with_lora(spec)
    elif spec.method.given and spec.method.full is None:
        has_few_texts = spec.method.set_fit is not None
        reason = "has too few texts for" if has_few_texts else "does not train"
        yield Violation(
            path,
            f"must be absent with spec.method.{next(iter(spec.method.given))}, which {reason} the embeddings of "
            "new tokens; remove it, or write method: {lora: {}} or {full: {}}",
        )
    freeze = None if spec.method.full is None else spec.method.full.freeze
    if freeze is not None and freeze.patterns:
        yield Violation(
            "spec.method.full.freeze.patterns",
            "must be absent with spec.model.vocabulary, because a pattern may freeze the embeddings of new tokens; "
            "write firstLayers instead, or remove one of them",
        )
    if freeze is not None and freeze.embeddings:
        yield Violation(
            "spec.method.full.freeze.embeddings",
            "must be false with spec.model.vocabulary, whose new embeddings must be trained; remove one of them",
        )


def _new_tokens_with_lora(spec: Spec) -> Iterator[Violation]:
    because = "with spec.method.lora and spec.model.vocabulary"
    allowed = " or ".join(map(str, NEW_TOKEN_ZERO_STAGES))
    if spec.deepspeed.zero_stage not in (None, *NEW_TOKEN_ZERO_STAGES):
        yield Violation(
            "spec.deepspeed.zeroStage",
            f"must be {allowed} {because}, not {spec.deepspeed.zero_stage}; write 2, or remove it",
        )
    if not {*OFFLOAD_ZERO_STAGES[spec.deepspeed.offload_or_none]} & {*NEW_TOKEN_ZERO_STAGES}:
        yield Violation(
            "spec.deepspeed.offload",
            f"must be None or Optimizer {because}, not {spec.deepspeed.offload}, which needs ZeRO stage 3; "
            "write Optimizer, or remove it",
        )
    if spec.training.chunked_loss:
        yield Violation(
            "spec.training.chunkedLoss",
            f"must be false {because}, which train rows of the output layer; remove it",
        )
    if ArtifactFormat.ADAPTER in spec.output.formats:
        yield Violation(
            "spec.output.formats",
            f"must not have Adapter {because}: the base model lacks the new tokens; write [Merged]",
        )


def _no_credentials(spec: Spec) -> Iterator[Violation]:
    if spec.storage.endpoint is not None and has_credentials(spec.storage.endpoint):
        yield Violation(
            "spec.storage.endpoint",
            "must not contain a user name or password, which would be stored in clear text; put them into a Secret and "
            "name it in spec.storage.credentialsSecret",
        )
    promote = spec.evaluation.promote
    servers = {
        "spec.tracking.mlflow.trackingUri": spec.tracking.mlflow,
        "spec.evaluation.promote.mlflow.trackingUri": promote.mlflow if promote else None,
    }
    for path, server in servers.items():
        if server is not None and has_credentials(server.tracking_uri or ""):
            yield Violation(
                path,
                "must not contain a user name or password, which would be stored in clear text; set the variables "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in spec.workers.env from a Secret",
            )


def _wandb(spec: Spec) -> Iterator[Violation]:
    wandb, path = spec.tracking.wandb, "spec.tracking.wandb.baseUrl"
    if wandb is None:
        return
    if wandb.mode is WandBMode.ONLINE and wandb.base_url is None:
        yield Violation(path, "must be set with mode: Online; write https://api.wandb.ai, or the URL of your server")
    if wandb.mode is WandBMode.OFFLINE and wandb.base_url is not None:
        yield Violation(path, "must be absent with mode: Offline, which sends nothing; remove it, or use mode: Online")
    if has_credentials(wandb.base_url or ""):
        yield Violation(
            path,
            "must not contain a user name or password, which would be stored in clear text; set the variable "
            "WANDB_API_KEY in spec.workers.env from a Secret",
        )


def _trackio(spec: Spec) -> Iterator[Violation]:
    if spec.tracking.trackio is not None and has_credentials(spec.tracking.trackio.server_url):
        yield Violation(
            "spec.tracking.trackio.serverUrl",
            "must not contain a user name or password, which would be stored in clear text; set the variable "
            "TRACKIO_WRITE_TOKEN in spec.workers.env from a Secret",
        )


def _model_registry(spec: Spec) -> Iterator[Violation]:
    registry = spec.evaluation.promote.mlflow if spec.evaluation.promote else None
    if registry is None:
        return
    path = "spec.evaluation.promote.mlflow"
    if registry.tracking_uri is None and spec.tracking.mlflow is None:
        yield Violation(f"{path}.trackingUri", "must be set, because spec.tracking.mlflow is absent; set one of them")
    if registry.alias.lower() == "latest" or re.fullmatch(r"[vV][0-9]+", registry.alias):
        yield Violation(
            f"{path}.alias", f"must not be {registry.alias}, which MLflow reserves for versions; use another alias"
        )


def _env(spec: Spec) -> Iterator[Violation]:
    for index, variable in enumerate(spec.workers.env):
        path, source = f"spec.workers.env[{index}]", variable.value_from
        if is_reserved(variable.name):
            yield Violation(f"{path}.name", f"must not be {variable.name}, which the operator sets; remove the entry")
        if source is None:
            continue
        if variable.value is not None:
            yield Violation(path, "must not have both value and valueFrom; keep one")
        if (source.secret_key_ref is None) == (source.config_map_key_ref is None):
            found = "none" if source.secret_key_ref is None else "both"
            yield Violation(
                f"{path}.valueFrom", f"must have exactly one of secretKeyRef, configMapKeyRef, not {found}; keep one"
            )


def is_reserved(name: str) -> bool:
    """Whether an environment variable is set by the operator or the supervisor, so that jobs must not set it."""
    return name in RESERVED_VARIABLES or name.startswith(RESERVED_PREFIX)


def _pods(spec: Spec) -> Iterator[tuple[str, PodSettings]]:
    """Yield path and block of the pods of each stage."""
    for block in POD_BLOCKS:
        yield f"spec.{block}", attrgetter(block)(spec)


def _pod_settings(spec: Spec) -> Iterator[Violation]:
    """The checks of the API server for pods, which would reject the Job otherwise, and the names that the operator
    uses."""
    for path, pod in _pods(spec):
        yield from _indexed(_toleration, pod.tolerations, f"{path}.tolerations")
        yield from _indexed(_spread, pod.topology_spread_constraints, f"{path}.topologySpreadConstraints")
        groups = [(spread.topology_key, spread.when_unsatisfiable) for spread in pod.topology_spread_constraints]
        yield from _repeated(groups, f"{path}.topologySpreadConstraints", "topologyKey and whenUnsatisfiable")
        yield from _volumes(path, pod)
        yield from _indexed(_mount, pod.volume_mounts, f"{path}.volumeMounts")
        for index, entry in enumerate(pod.env_from):
            if (entry.secret_ref is None) == (entry.config_map_ref is None):
                found = "none" if entry.secret_ref is None else "both"
                yield Violation(
                    f"{path}.envFrom[{index}]",
                    f"must have exactly one of secretRef, configMapRef, not {found}; keep one",
                )
        yield from _keys(pod.labels, f"{path}.labels")
        yield from _keys(pod.annotations, f"{path}.annotations")


def _indexed(
    check: Callable[[Entry, str], Iterator[Violation]], entries: Iterable[Entry], path: str
) -> Iterator[Violation]:
    for index, entry in enumerate(entries):
        yield from check(entry, f"{path}[{index}]")


def _repeated(values: Sequence[object], path: str, what: str) -> Iterator[Violation]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield Violation(
                f"{path}[{index}]",
                f"must not have the {what} of {path}[{values.index(value)}]; change or remove one",
            )


def _toleration(toleration: Toleration, path: str) -> Iterator[Violation]:
    if toleration.operator == "Exists" and toleration.value:
        yield Violation(f"{path}.value", "must be empty with operator Exists; remove it, or write operator: Equal")
    if toleration.operator == "Equal" and not toleration.key:
        yield Violation(f"{path}.key", "must be set with operator Equal; write a key, or operator: Exists")
    if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
        yield Violation(
            f"{path}.effect",
            "must be NoExecute if tolerationSeconds is set; write effect: NoExecute, or remove tolerationSeconds",
        )


def _spread(spread: TopologySpread, path: str) -> Iterator[Violation]:
    if spread.min_domains is not None and spread.when_unsatisfiable != "DoNotSchedule":
        yield Violation(
            f"{path}.minDomains",
            "must be absent with whenUnsatisfiable ScheduleAnyway; remove it, or write whenUnsatisfiable: "
            "DoNotSchedule",
        )
    if spread.match_label_keys and spread.label_selector is None:
        yield Violation(f"{path}.labelSelector", "must be set with matchLabelKeys; write it, or remove matchLabelKeys")


def _volumes(path: str, pod: PodSettings) -> Iterator[Violation]:
    names = [volume.name for volume in pod.volumes]
    yield from _repeated(names, f"{path}.volumes", "name")
    for index, volume in enumerate(pod.volumes):
        if volume.name in constants.VOLUMES:
            used = ", ".join(constants.VOLUMES)
            yield Violation(
                f"{path}.volumes[{index}].name",
                f"must not be {volume.name}, because the operator uses the names {used}; write another name",
            )
        if len(volume.sources) != 1:
            found = ", ".join(volume.sources) or "none"
            yield Violation(
                f"{path}.volumes[{index}]",
                f"must have exactly one source, such as persistentVolumeClaim, not {found}; keep one",
            )
    for index, mount in enumerate(pod.volume_mounts):
        if mount.name not in names:
            known = f"one of {', '.join(names)}" if names else "the name of an entry"
            yield Violation(
                f"{path}.volumeMounts[{index}].name",
                f"must be {known} in {path}.volumes, not {mount.name}; correct it, or add the volume",
            )
    yield from _repeated([mount.mount_path for mount in pod.volume_mounts], f"{path}.volumeMounts", "mountPath")


_LONGEST_DOMAIN = 253
_OWN_PATHS = (*constants.VOLUMES.values(), constants.TERMINATION_LOG)


def _mount(mount: VolumeMount, path: str) -> Iterator[Violation]:
    place = posixpath.join("/", posixpath.normpath(mount.mount_path).strip("/"), "")
    taken = next((own for own in _OWN_PATHS if place.startswith(f"{own}/") or f"{own}/".startswith(place)), None)
    if taken is not None:
        yield Violation(
            f"{path}.mountPath",
            f"must not be at, above or below {taken}, which the operator mounts; write another path",
        )
    for field, folder in (("subPath", mount.sub_path), ("subPathExpr", mount.sub_path_expr)):
        if folder is not None and (folder.startswith("/") or ".." in folder.split("/")):
            yield Violation(f"{path}.{field}", "must be a relative path without ..; write a folder of the volume")
    if mount.sub_path is not None and mount.sub_path_expr is not None:
        yield Violation(path, "must not have both subPath and subPathExpr; keep one")


def _keys(entries: Mapping[str, str], path: str) -> Iterator[Violation]:
    """Check the keys of labels or annotations, which the schema of the API server does not."""
    for key in entries:
        domain = key.rpartition("/")[0]
        if len(domain) > _LONGEST_DOMAIN or not re.fullmatch(KEY_PATTERN, key):
            yield Violation(
                f"{path}.{key}",
                "must be a key such as team or example.com/team, of letters, digits, '-', '_' and '.'; rename it",
            )
        elif key in constants.RESERVED_KEYS or domain in constants.RESERVED_DOMAINS:
            yield Violation(
                f"{path}.{key}",
                "must be absent, because the operator and Jobs of Kubernetes set it; remove it, or use another key",
            )


def _gpus(spec: Spec) -> Iterator[Violation]:
    """GPUs are requested by their own fields; an amount in `resources` must agree with them."""
    resource, workers, evaluate = spec.workers.gpu_resource, spec.workers, spec.stages.evaluate
    fields = {
        "spec.workers": (workers.gpus_per_node, "set spec.workers.gpusPerNode"),
        "spec.stages.prepare": (0, "prepare needs no GPU"),
        "spec.stages.evaluate": (evaluate.gpus, "set spec.stages.evaluate.gpus"),
    }
    for path, pod in _pods(spec):
        wanted, advice = fields[path]
        for kind, amounts in (("requests", pod.resources.requests), ("limits", pod.resources.limits)):
            if resource in amounts and amount(amounts[resource]) != wanted:
                yield Violation(f"{path}.resources.{kind}.{resource}", f"must be absent; remove it, and {advice}")
    yield from _gpu_memory(spec)
    if "/mig-" in resource and workers.gpus_per_node > 1:
        yield Violation(
            "spec.workers.gpusPerNode",
            f"must be at most 1 with the MIG device {resource}, because CUDA shows a process only one of them, not "
            f"{workers.gpus_per_node}; write 1 and more spec.workers.nodes",
        )


def _gpu_memory(spec: Spec) -> Iterator[Violation]:
    memory, path = spec.workers.gpu_memory, "spec.workers.gpuMemory"
    if memory is None:
        return
    if spec.workers.gpus_per_node == 0:
        yield Violation(path, "must be absent without GPUs; remove it, or set spec.workers.gpusPerNode")
    if not _MIN_GPU_BYTES <= amount(memory) <= _MAX_GPU_BYTES:
        yield Violation(
            path,
            f"must be the memory of one GPU, from {_MIN_GPU_BYTES >> 30}Gi to {_MAX_GPU_BYTES >> 40}Ti, not "
            f"{memory}; write a quantity such as 80Gi",
        )


def _lengths(spec: Spec) -> Iterator[Violation]:
    if spec.training.epochs is not None and spec.training.max_steps is not None:
        yield Violation("spec.training", "must not have both epochs and maxSteps; keep one")
    if spec.training.warmup.ratio is not None and spec.training.warmup.steps is not None:
        yield Violation("spec.training.warmup", "must not have both ratio and steps; keep one")
    if spec.checkpoint.max_lost_work is not None and spec.checkpoint.every_steps is not None:
        yield Violation("spec.checkpoint", "must not have both maxLostWork and everySteps; keep one")


def _warmup(spec: Spec) -> Iterator[Violation]:
    warmup, total = spec.training.warmup.steps, spec.training.max_steps
    if warmup and total is not None and warmup >= total:
        yield Violation(
            "spec.training.warmup.steps",
            f"must be less than spec.training.maxSteps, {total}, not {warmup}, because the learning rate would never "
            "reach its peak; lower it, or raise maxSteps",
        )


def _schedule_options(spec: Spec) -> Iterator[Violation]:
    training, path = spec.training, "spec.training.scheduleOptions"
    options = training.schedule_options
    for name, schedules in SCHEDULES_WITH.items():
        if getattr(options, name) is not None and training.learning_rate_schedule not in schedules:
            *first, last = schedules
            listed = f"{', '.join(first)} or {last}" if first else last
            yield Violation(
                f"{path}.{ScheduleOptions.model_fields[name].alias}",
                f"must be absent with learningRateSchedule {training.learning_rate_schedule}, which does not use it; "
                f"remove it, or set spec.training.learningRateSchedule to {listed}",
            )
    if training.learning_rate_schedule is Schedule.WARMUP_STABLE_DECAY:
        warmup, name = training.warmup.ratio or 0.0, "spec.training.warmup.ratio"
        if training.warmup.steps and training.max_steps:
            warmup, name = training.warmup.steps / training.max_steps, "spec.training.warmup.steps / maxSteps"
        decay = SCHEDULE_DEFAULTS["decay_ratio"] if options.decay_ratio is None else options.decay_ratio
        if warmup + decay > 1.0 + _ROUNDING and warmup < 1.0:
            yield Violation(
                f"{path}.decayRatio",
                f"must be at most 1 - {name}, {1.0 - warmup:.3g}, not {decay:g}; lower one of them",
            )


def _chunked_loss(spec: Spec) -> Iterator[Violation]:
    if not spec.training.chunked_loss:
        return
    task = task_of(spec)
    if task not in (None, Task.CAUSAL_LM, Task.MASKED_LM):
        yield Violation("spec.training.chunkedLoss", f"must be false for {task}, which has few logits; remove it")
    if spec.deepspeed.zero_stage == 3 or OFFLOAD_ZERO_STAGES[spec.deepspeed.offload_or_none] == (3,):
        yield Violation(
            "spec.training.chunkedLoss",
            "must be false with ZeRO stage 3, which keeps only a part of the output layer; remove it, or set "
            "spec.deepspeed.zeroStage: 2 and spec.deepspeed.offload: None or Optimizer",
        )


def _holdouts(spec: Spec) -> Iterator[Violation]:
    splits: dict[str, Holdout] = {"validation": spec.data.validation, "test": spec.data.test}
    for name, holdout in splits.items():
        if (holdout.sources is None) == (holdout.fraction is None):
            found = "none" if holdout.sources is None else "both"
            yield Violation(f"spec.data.{name}", f"must have exactly one of sources, fraction, not {found}; keep one")
        if holdout.stratify is not None and holdout.fraction is None:
            yield Violation(
                f"spec.data.{name}.stratify",
                "must be absent without fraction, because separate files are not split; remove it",
            )
        yield from _grouping(name, holdout, spec)
        for index, source in enumerate(holdout.sources or ()):
            advice = "name other files, or remove sources and write fraction: 0.1"
            yield from _not_trained_on(spec, source.uri, f"spec.data.{name}.sources[{index}].uri", advice)
    drawn = {name: holdout.group_by for name, holdout in splits.items() if holdout.fraction}
    if len(set(drawn.values())) > 1:
        missing = next(name for name, column in drawn.items() if column is None or column != drawn["validation"])
        column = next(column for column in drawn.values() if column is not None)
        yield Violation(
            f"spec.data.{missing}.groupBy",
            "must be the same column for validation and test, so that no group is in two splits; set both to "
            f"{column}, or set the fraction of one to 0",
        )
    held_out = sum(holdout.fraction or 0.0 for holdout in splits.values())
    if held_out >= 1.0:
        yield Violation(
            "spec.data",
            f"must leave data to train on, but validation.fraction and test.fraction add up to {held_out:g}; "
            "lower them so that their sum is less than 1",
        )


def _grouping(name: str, holdout: Holdout, spec: Spec) -> Iterator[Violation]:
    if holdout.group_by is None:
        return
    if spec.data.format is DataFormat.CLASSIFICATION and holdout.group_by == (spec.data.columns.label or "label"):
        yield Violation(
            f"spec.data.{name}.groupBy",
            f"must not be the column of the labels, {holdout.group_by}, because all records of a label would be in one "
            "split, and the labels of the others could not be learned; remove it, or name another column",
        )
    if not holdout.fraction:
        yield Violation(
            f"spec.data.{name}.groupBy",
            "must be absent unless fraction is above 0, because only fractions of the training files are split; "
            "remove it",
        )
    if holdout.stratify:
        yield Violation(
            f"spec.data.{name}.stratify",
            "must not be true with groupBy, because whole groups are held out, with all of their labels; remove it",
        )


def _cleaning(spec: Spec) -> Iterator[Violation]:
    cleaning = spec.data.cleaning
    found = [kind for kind in MAY_BE_SEVERAL_WORDS if kind in cleaning.redact]
    if found and spec.data.format is DataFormat.TOKEN_CLASSIFICATION:
        yield Violation(
            "spec.data.cleaning.redact",
            f"must not have {', '.join(found)} with the format {spec.data.format}, whose words are redacted one by "
            "one, because such numbers may be several words; remove them",
        )
    if cleaning.test_overlap and spec.data.validation.fraction == 0 == spec.data.test.fraction:
        yield Violation(
            "spec.data.cleaning.testOverlap",
            "must be false without held-out records to compare with; remove it, or set validation or test",
        )
    if cleaning.min_chars and cleaning.max_chars and cleaning.min_chars > cleaning.max_chars:
        yield Violation(
            "spec.data.cleaning.minChars",
            f"must be at most maxChars, {cleaning.max_chars}, not {cleaning.min_chars}; lower it, or raise maxChars",
        )
    yield from _quality(spec)


def _quality(spec: Spec) -> Iterator[Violation]:
    cleaning, path = spec.data.cleaning, "spec.data.cleaning.quality"
    quality = cleaning.quality
    if quality is None:
        return
    if spec.data.format not in (None, DataFormat.TEXT):
        yield Violation(
            path,
            f"must be absent with the format {spec.data.format}, because its limits are for whole documents; remove it",
        )
    for name, lowest, highest in (
        ("Words", quality.min_words, quality.max_words),
        ("MeanWordLength", quality.min_mean_word_length, quality.max_mean_word_length),
    ):
        if lowest > highest:
            yield Violation(
                f"{path}.min{name}",
                f"must be at most max{name}, {highest}, not {lowest}; lower it, or raise max{name}",
            )
    if cleaning.max_chars is not None and cleaning.max_chars < 2 * quality.min_words - 1:
        yield Violation(
            f"{path}.minWords",
            f"must fit into maxChars, {cleaning.max_chars}, but {quality.min_words} words with spaces have at least "
            f"{2 * quality.min_words - 1} characters; lower it, or raise maxChars",
        )
    if unspaced := sorted({*cleaning.languages} & {*UNSPACED_LANGUAGES}):
        yield Violation(
            path,
            f"must be absent with the language {unspaced[0]}, whose words are not separated by spaces; remove it, or "
            f"remove {', '.join(unspaced)} from languages",
        )
    elif quality.min_stop_words and {*cleaning.languages} - {"en"}:
        yield Violation(
            f"{path}.minStopWords",
            f"must be 0 with languages other than en, not {quality.min_stop_words}, because the stop words are "
            "English; write 0",
        )


def _few_shot(spec: Spec) -> Iterator[Violation]:
    few_shot, path = spec.data.few_shot, "spec.data.fewShot"
    if few_shot is None:
        return
    if (few_shot.per_class is None) == (few_shot.examples is None):
        found = "none" if few_shot.examples is None else "both"
        yield Violation(path, f"must have exactly one of perClass, examples, not {found}; keep one")
        return
    task = task_of(spec)
    if task is None:
        return
    if few_shot.per_class is not None and not TASK_SUPPORT[task].labels_records:
        yield Violation(
            f"{path}.perClass", f"must be absent for {task}, whose records have no label; write examples instead"
        )
    if few_shot.examples is not None and TASK_SUPPORT[task].labels_records:
        yield Violation(
            f"{path}.examples", f"must be absent for {task}, whose records have labels; write perClass instead"
        )


def _weights(spec: Spec) -> Iterator[Violation]:
    train, path = spec.data.train, "spec.data.train"
    weighted = [index for index, source in enumerate(train) if source.weight != 1]
    if not weighted:
        return
    if spec.data.few_shot is not None:
        yield Violation(
            f"{path}[{weighted[0]}].weight",
            "must be absent with spec.data.fewShot, which selects a fixed number of records from all sources together; "
            "remove one of them",
        )
    for index, source in enumerate(train):
        first = next(place for place, other in enumerate(train) if _same_file(other.uri, source.uri))
        if first != index and {first, index} & {*weighted}:
            yield Violation(
                f"{path}[{index}].uri",
                f"must not be that of {path}[{first}], because a file has one weight; remove one of them and set the "
                "weight of the other, above 1 to train more often on these files",
            )


def _same_file(one: str, other: str) -> bool:
    """Whether two addresses are the same file or glob. The revision `main` is the default one of the hub."""
    return _normalized(one) == _normalized(other)


def _normalized(uri: str) -> str:
    scheme, _, path = uri.partition("://")
    if scheme == "hf":
        path = path.replace("@main/", "/", 1)
    return f"{scheme}://{posixpath.normpath(path)}"


UNCLEAR_PATH = (
    "not have an empty name, '.' or '..' in the path, because object stores disagree on which object it names"
)
"""What an address must not be; the remedy is its address in plain form."""


def plain_path(uri: str) -> str:
    """Return the `s3://` address that was probably meant by one with an empty name, `.` or `..` in its path; empty if
    the address has none of them. A slash at the end is allowed."""
    if not uri.startswith("s3://"):
        return ""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not {"", ".", ".."} & {*key.removesuffix("/").split("/")} or not key:
        return ""
    return f"s3://{bucket}{posixpath.normpath('/' + key.lstrip('/'))}"


def _unclear_paths(spec: Spec) -> Iterator[Violation]:
    addresses = {**_read_addresses(spec), "spec.output.uri": spec.output.uri}
    for path, uri in addresses.items():
        if written := plain_path(uri):
            yield Violation(path, f"must {UNCLEAR_PATH}; write {written}, not {uri}")


AUGMENTED_FORMATS = (DataFormat.CLASSIFICATION, DataFormat.TEXT)
"""Formats whose records are one text that may change. In the others, ranges of the text carry loss or have labels."""


def _augmentation(spec: Spec) -> Iterator[Violation]:
    augmentation, path, data_format = spec.data.augmentation, "spec.data.augmentation", spec.data.format
    if augmentation is None:
        return
    if data_format is not None and data_format not in AUGMENTED_FORMATS:
        yield Violation(
            path,
            f"must be absent for the format {data_format}, because only parts of its texts carry loss or have a label, "
            "and changed words would move them; remove it",
        )
    if augmentation.min_per_class is not None and data_format not in (None, DataFormat.CLASSIFICATION):
        yield Violation(
            f"{path}.minPerClass", f"must be absent for the format {data_format}, which has no classes; remove it"
        )
    methods = augmentation.methods
    if len(set(methods)) != len(methods):
        yield Violation(f"{path}.methods", "must not list a method twice; keep one")
    if (AugmentationMethodName.SYNONYM in methods) != (augmentation.synonyms is not None):
        is_missing = augmentation.synonyms is None
        yield Violation(
            f"{path}.synonyms",
            "must name a file for the method Synonym; add it, or remove the method"
            if is_missing
            else "must be absent without the method Synonym; remove it, or add the method",
        )


FORMATS_WITH_PROMPTS = (DataFormat.INSTRUCTION, DataFormat.CHAT)
"""Formats of which only the answers carry loss, unless `data.trainOnInputs` is set."""


def _train_on_inputs(spec: Spec) -> Iterator[Violation]:
    data_format = spec.data.format
    if not spec.data.train_on_inputs or data_format in (None, *FORMATS_WITH_PROMPTS):
        return
    reason = (
        "of which every token carries loss anyway"
        if data_format is DataFormat.TEXT
        else "whose targets are labels instead of tokens"
    )
    yield Violation(
        "spec.data.trainOnInputs",
        f"must be absent or false for the format {data_format}, {reason}; remove it",
    )


def _checkpointed_layers(spec: Spec) -> Iterator[Violation]:
    every = spec.training.gradient_checkpointing_every_n_layers
    if every > 1 and not spec.training.gradient_checkpointing:
        yield Violation(
            "spec.training.gradientCheckpointingEveryNLayers",
            f"must be absent or 1 with gradientCheckpointing: false, which recomputes no layer, not {every}; remove "
            "it, or write gradientCheckpointing: true",
        )


def _batch(spec: Spec) -> Iterator[Violation]:
    world = spec.workers.nodes * max(1, spec.workers.gpus_per_node)
    total, micro = spec.training.global_batch_size, spec.training.micro_batch_size
    if total % world:
        below, above = total // world * world, (total // world + 1) * world
        nearest = f"{below} or {above}" if below else f"{above}"
        yield Violation(
            "spec.training.globalBatchSize",
            f"must be divisible by the number of training processes, {world}, not {total}; write {nearest}",
        )
    elif micro is not None and (total // world) % micro:
        fitting = max(size for size in range(1, micro + 1) if (total // world) % size == 0)
        yield Violation(
            "spec.training.microBatchSize",
            f"must divide the {total // world} examples that each process gets per step, not {micro}; write {fitting}",
        )


def divides_batch(spec: Spec, nodes: int) -> bool:
    """Whether the global batch can be divided evenly among this number of workers."""
    micro = spec.training.micro_batch_size or 1
    return spec.training.global_batch_size % (nodes * max(1, spec.workers.gpus_per_node) * micro) == 0


def _fewest_workers(spec: Spec) -> Iterator[Violation]:
    fewest, nodes = spec.workers.min_nodes, spec.workers.nodes
    if fewest is None:
        if spec.workers.start_timeout is not None:
            yield Violation(
                "spec.workers.startTimeout",
                "must be absent without minNodes, because the job waits for all workers; remove it, or set minNodes "
                "too",
            )
        return
    if fewest > nodes:
        yield Violation(
            "spec.workers.minNodes", f"must be at most spec.workers.nodes, {nodes}, not {fewest}; write {nodes}"
        )
    elif not divides_batch(spec, fewest):
        usable = [str(number) for number in range(1, nodes + 1) if divides_batch(spec, number)]
        yield Violation(
            "spec.workers.minNodes",
            f"must be a number of workers that divides the global batch of {spec.training.global_batch_size} evenly, "
            f"not {fewest}; write "
            f"{' or '.join(usable) or 'another spec.training.globalBatchSize'}",
        )


def _early_stopping(spec: Spec) -> Iterator[Violation]:
    early, overfitting = spec.training.early_stopping, spec.training.overfitting
    for field, block in (("earlyStopping", early), ("overfitting", overfitting)):
        if block is not None and spec.data.validation.fraction == 0.0:
            yield Violation(
                f"spec.training.{field}", "must have a validation split; set spec.data.validation.fraction above 0"
            )
    if spec.training.learning_rate_schedule is Schedule.REDUCE_ON_PLATEAU and spec.data.validation.fraction == 0.0:
        yield Violation(
            "spec.training.learningRateSchedule",
            "must not be ReduceOnPlateau without a validation split; set spec.data.validation.fraction above 0, or "
            "write another schedule",
        )
    if spec.checkpoint.keep_best >= 1:
        return
    if early is not None:
        yield Violation(
            "spec.checkpoint.keepBest",
            f"must be at least 1, not {spec.checkpoint.keep_best}: early stopping exports the best checkpoint; "
            "write 1, or remove spec.training.earlyStopping",
        )
    elif overfitting is not None and overfitting.action is OverfittingAction.STOP:
        yield Violation(
            "spec.checkpoint.keepBest",
            f"must be at least 1, not {spec.checkpoint.keep_best}: overfitting with action Stop exports the best "
            "checkpoint; write 1, or set spec.training.overfitting.action to Warn",
        )


def _threshold(threshold: Threshold, path: str) -> Iterator[Violation]:
    if threshold.min is None and threshold.max is None:
        yield Violation(path, "must have at least one of min, max; write one of them")
    elif threshold.min is not None and threshold.max is not None and threshold.min > threshold.max:
        yield Violation(
            f"{path}.min",
            f"must be at most max, {threshold.max:g}, not {threshold.min:g}; exchange them, or remove one",
        )
    for name, bound in (("min", threshold.min), ("max", threshold.max)):
        if METRIC_SUPPORT[threshold.metric].is_share and bound is not None and not 0 <= bound <= 1:
            yield Violation(f"{path}.{name}", f"must be between 0 and 1, a share, not {bound:g}; write 0.9 for 90 %")


def _promotion(spec: Spec) -> Iterator[Violation]:
    promote, path = spec.evaluation.promote, "spec.evaluation.promote"
    if promote is None:
        return
    for index, threshold in enumerate(promote.thresholds):
        yield from _threshold(threshold, f"{path}.thresholds[{index}]")
    if spec.data.test.fraction == 0.0:
        yield Violation(path, "must have a test split; set spec.data.test.fraction above 0")
    if promote.min_gain_over_base_model is not None and not spec.evaluation.base_model:
        yield Violation(
            f"{path}.minGainOverBaseModel",
            "must be absent if the base model is not evaluated; remove it, or set spec.evaluation.baseModel to true",
        )
    if promote.max_regression is not None and not (spec.evaluation.base_model and spec.evaluation.regression_sets):
        yield Violation(
            f"{path}.maxRegression",
            "must be absent unless the base model is evaluated on regression sets; remove it, or set "
            "spec.evaluation.regressionSets and set spec.evaluation.baseModel to true",
        )
    if ArtifactFormat.MERGED not in spec.output.formats:
        yield Violation(
            path,
            f"must have a complete model to promote; add {ArtifactFormat.MERGED} to spec.output.formats, or remove "
            "promote",
        )


def _regression_sets(spec: Spec) -> Iterator[Violation]:
    sets, path, task = spec.evaluation.regression_sets, "spec.evaluation.regressionSets", task_of(spec)
    names = [each.name for each in sets]
    for index, each in enumerate(sets):
        if each.name in names[:index]:
            yield Violation(f"{path}[{index}].name", f"must be unique, not {each.name} again; choose another name")
        if each.format is not None and task is not None and each.format not in TASK_SUPPORT[task].formats:
            fitting = " or ".join(TASK_SUPPORT[task].formats)
            yield Violation(
                f"{path}[{index}].format", f"must be a format of {task}, not {each.format}; write {fitting}"
            )
        for place, source in enumerate(each.sources):
            advice = "divide the files, and name the part that is not trained on here"
            yield from _not_trained_on(spec, source.uri, f"{path}[{index}].sources[{place}].uri", advice)


def _not_trained_on(spec: Spec, uri: str, path: str, advice: str) -> Iterator[Violation]:
    for number, trained in enumerate(spec.data.train):
        if _same_file(uri, trained.uri):
            yield Violation(
                path,
                f"must not be that of spec.data.train[{number}], because the model has learned these records; {advice}",
            )


def _output(spec: Spec) -> Iterator[Violation]:
    formats = spec.output.formats
    if len(set(formats)) != len(formats):
        yield Violation("spec.output.formats", "must not list a format twice; keep one")
    if spec.output.gguf is not None:
        yield from _repeated(spec.output.gguf.types, "spec.output.gguf.types", "type")
        yield from _only_with(ArtifactFormat.GGUF, formats, "spec.output.gguf")
    if spec.output.compressed_tensors is not None:
        yield from _only_with(ArtifactFormat.COMPRESSED_TENSORS, formats, "spec.output.compressedTensors")


def _only_with(artifact: ArtifactFormat, formats: Sequence[ArtifactFormat], path: str) -> Iterator[Violation]:
    if artifact not in formats:
        yield Violation(
            path,
            f"must be absent without {artifact} in spec.output.formats; remove it, or add {artifact} to "
            "spec.output.formats",
        )


def _poll(spec: Spec) -> Iterator[Violation]:
    if spec.data.poll is not None and seconds(spec.data.poll) < _MIN_POLL_SECONDS:
        yield Violation("spec.data.poll", f"must be at least 1m, not {spec.data.poll}; write 1m, or a longer interval")


def _schedule(spec: Spec) -> Iterator[Violation]:
    if spec.schedule is not None:
        for name, message in schedule_errors(spec.schedule).items():
            yield Violation(f"spec.schedule.{name}", message)


def lowest_zero_stage(offload: Offload, dtype: Dtype) -> int:
    """Return the lowest ZeRO stage that supports this offloading and this type."""
    return min(set(OFFLOAD_ZERO_STAGES[offload]) & set(DTYPE_ZERO_STAGES[dtype]))


def zero_stage(spec: Spec, chosen: int, dtype: Dtype) -> int:
    """Return the ZeRO stage of an attempt: the current value in the spec, else the one chosen by the prepare stage."""
    requested = spec.deepspeed.zero_stage
    return max(chosen if requested is None else requested, lowest_zero_stage(spec.deepspeed.offload_or_none, dtype))


def effective_offload(spec: Spec, chosen: Offload, stage: int) -> Offload:
    """Return what an attempt at this ZeRO stage offloads: the current value in the spec, else the one chosen by the
    prepare stage if the stage supports it."""
    if spec.deepspeed.offload is not None:
        return spec.deepspeed.offload
    return chosen if stage in OFFLOAD_ZERO_STAGES[chosen] else Offload.NONE


def limiting_memory(spec: Spec) -> str | None:
    """Return the memory that limits the micro-batch: of a GPU, otherwise of a worker. None: it is not limited."""
    if spec.workers.gpus_per_node == 0:
        return spec.workers.resources.limits.get("memory")
    # An amount alone would be the same for a worker without GPUs.
    return None if spec.workers.gpu_memory is None else f"{spec.workers.gpu_memory}{_PER_GPU}"


def limits_micro_batch(spec: Spec, computed_for: str | None) -> bool:
    """Return whether a maximum of the micro-batch that was computed for a `limiting_memory` still applies: if the
    present one is of the same kind, and not larger."""
    present = limiting_memory(spec)
    if present is None or computed_for is None or present.endswith(_PER_GPU) != computed_for.endswith(_PER_GPU):
        return False
    return amount(present.removesuffix(_PER_GPU)) <= amount(computed_for.removesuffix(_PER_GPU))


def memory_fingerprint(spec: Spec) -> str:
    """Return the settings that determine the memory of an attempt and may be changed within a run, as one text."""
    training, workers = spec.training, spec.workers
    values = (
        spec.deepspeed.zero_stage,
        spec.deepspeed.offload,
        training.micro_batch_size,
        training.gradient_checkpointing,
        workers.nodes,
        workers.min_nodes,
        workers.gpus_per_node,
        # Left out by default, so that the texts of earlier versions still apply.
        *([every] if (every := training.gradient_checkpointing_every_n_layers) > 1 else []),
    )
    return "/".join("" if value is None else str(value) for value in values)


def _owned_deepspeed_keys(spec: Spec) -> Iterator[Violation]:
    config = spec.deepspeed.config or {}
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        yield Violation(
            "spec.deepspeed.config.zero_optimization",
            "must be an object with DeepSpeed options; write one, or remove it",
        )
        return
    present = set(config) | {f"zero_optimization.{key}" for key in zero}
    for key, owner in OWNED_DEEPSPEED_KEYS.items():
        if key in present:
            yield Violation(
                f"spec.deepspeed.config.{key}", f"must be absent, because the job sets it; remove it and use {owner}"
            )


def _read_addresses(spec: Spec) -> dict[str, str]:
    """Field path -> address of everything that a run reads."""
    addresses = {"spec.model.uri": spec.model.uri}
    for name, sources in (
        ("train", spec.data.train),
        ("validation.sources", spec.data.validation.sources or ()),
        ("test.sources", spec.data.test.sources or ()),
    ):
        addresses |= {f"spec.data.{name}[{index}].uri": source.uri for index, source in enumerate(sources)}
    if spec.data.augmentation is not None and spec.data.augmentation.synonyms is not None:
        addresses["spec.data.augmentation.synonyms.uri"] = spec.data.augmentation.synonyms.uri
    for number, each in enumerate(spec.evaluation.regression_sets):
        for index, source in enumerate(each.sources):
            addresses[f"spec.evaluation.regressionSets[{number}].sources[{index}].uri"] = source.uri
    return addresses


def _no_local_files(spec: Spec) -> Iterator[Violation]:
    for path, uri in _read_addresses(spec).items():
        if uri.startswith("file://"):
            yield Violation(path, f"must be an address that every node can reach, not {uri}; write an s3:// address")
