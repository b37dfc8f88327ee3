"""The support table: which methods, tasks, ZeRO stages, offloading and export formats can be combined. Pure.

The rows of the table are defined with the choices: methods in their blocks (`v1alpha1/methods`), tasks in
`v1alpha1/tasks.py`, metrics in `v1alpha1/metrics.py`, offloading here. Everything else is derived from them: the CEL
rules of the CRD, the violations that `finetune validate`, the operator and the prepare stage report, the ZeRO stages
that the trainer may choose from, and docs/support.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .v1alpha1 import (
    ENTITY_PREFIXES,
    METRIC_SUPPORT,
    TASK_SUPPORT,
    ArtifactFormat,
    Batching,
    DataFormat,
    Dtype,
    Method,
    MethodSupport,
    Metric,
    Offload,
    Output,
    Quantization,
    SimpleBaseline,
    Spec,
    Task,
    TaskSupport,
    Training,
)

ZERO_STAGES = (0, 1, 2, 3)

DEFAULT_FORMATS: tuple[ArtifactFormat, ...] = Output.model_fields["formats"].default

OFFLOAD_ZERO_STAGES: dict[Offload, tuple[int, ...]] = {
    Offload.NONE: ZERO_STAGES,
    Offload.OPTIMIZER: (1, 2, 3),  # stage 0 does not use a DeepSpeed optimizer that could be offloaded
    Offload.OPTIMIZER_AND_PARAMETERS: (3,),  # the other stages need all parameters at once
}
"""ZeRO stages that can be trained with each value of `spec.deepspeed.offload`."""

DTYPE_ZERO_STAGES: dict[Dtype, tuple[int, ...]] = {
    Dtype.FLOAT32: ZERO_STAGES,
    # Only these accumulate the gradients of 16-bit weights in 32 bit with an optimizer whose state can be saved.
    Dtype.BFLOAT16: (2, 3),
    Dtype.FLOAT16: (2, 3),
}
"""ZeRO stages that support each type. A lower stage in the spec is not a violation; it is raised."""

QUANTIZATION_ZERO_STAGES: dict[Quantization, tuple[int, ...]] = {
    # Stage 3 gathers partitioned parameters as floating-point values. PEFT has a way around it, which is not supported.
    Quantization.NF4: (0, 1, 2),
    Quantization.INT8: (0, 1, 2),
}
"""ZeRO stages that can be trained with each value of `spec.model.quantization`."""

NEW_TOKEN_ZERO_STAGES = (0, 1, 2)
"""ZeRO stages that can be trained with `spec.model.vocabulary` and LoRA. PEFT copies the embeddings in every forward
pass, and stage 3 gathers parameters only for the module that they belong to."""


@dataclass(frozen=True)
class Restriction:
    """A choice in a spec that limits the values of a field."""

    path: str
    """Path of the field, such as `output.formats`."""
    applies: Callable[[Spec], bool]
    values: Callable[[Spec], Sequence[Any]]
    """The values of the field in a spec; empty if it is not set."""
    allowed: tuple[Any, ...]
    condition: str
    """CEL: whether the restriction applies."""
    within: Callable[[str], str]
    """Returns CEL for a list of allowed values: whether the field is absent or has only these values."""
    requirement: Callable[[str], str]
    """Returns for a rejected value what the field must be and how to correct it."""
    refused: tuple[Any, ...]
    """All values of the field that are not allowed."""

    @property
    def rule(self) -> str:
        """CEL over the spec."""
        return f"!({self.condition}) || {self.within(_cel_list(self.allowed))}"

    @property
    def message(self) -> str:
        """Message of the API server."""
        return f"{self.path} {self.requirement(_any_of(self.refused))}".replace("spec.", "")


@dataclass(frozen=True)
class Support:
    """The table."""

    methods: Mapping[str, MethodSupport]
    """By the name of the method's block."""
    tasks: Mapping[Task, TaskSupport]
    offload: Mapping[Offload, tuple[int, ...]]

    def refusals(self, spec: Spec) -> Iterator[tuple[str, str]]:
        """Yield field path (`spec.output.formats`) and message of every combination in a spec that is not supported."""
        for one in self.restrictions():
            if one.applies(spec):
                wrong = (value for value in dict.fromkeys(one.values(spec)) if value not in one.allowed)
                yield from ((f"spec.{one.path}", one.requirement(_text(value))) for value in wrong)

    def cel_rules(self) -> tuple[tuple[str, str], ...]:
        """Rule and message of every restriction, for `spec`."""
        return tuple((one.rule, one.message) for one in self.restrictions())

    def task_of(self, spec: Spec) -> Task | None:
        """The task that the spec names or its data format implies; None where it depends on the data."""
        if spec.model.task is not None or spec.data.format is None:
            return spec.model.task
        return self.task_for(spec.data.format)

    def task_for(self, data_format: DataFormat) -> Task:
        """Return the task of a data format if the spec does not set one."""
        return next(task for task, row in self.tasks.items() if data_format in row.formats)

    def zero_stages(self, method: str, offload: Offload, dtype: Dtype) -> tuple[int, ...]:
        """Return the supported stages, lowest first."""
        rows = (self.methods[method].zero_stages, self.offload[offload], DTYPE_ZERO_STAGES[dtype])
        return tuple(stage for stage in ZERO_STAGES if all(stage in row for row in rows))

    def restrictions(self) -> Iterator[Restriction]:
        """Yield the combinations that are not supported, grouped by choice and field."""
        for method, method_row in self.methods.items():
            yield from self._of_method(method, method_row)
        for task, task_row in self.tasks.items():
            yield from self._of_task(task, task_row)
        for offload, stages in self.offload.items():
            yield from _of_offload(offload, stages)
        for quantization, stages in QUANTIZATION_ZERO_STAGES.items():
            yield from self._of_quantization(quantization, stages)

    def _of_method(self, method: str, row: MethodSupport) -> Iterator[Restriction]:
        with_method = f"with method.{method}"

        def applies(spec: Spec) -> bool:
            return list(spec.method.given) == [method]

        def restriction(path: str, **fields: Any) -> Restriction:
            return Restriction(path, applies=applies, condition=f"has(self.method.{method})", **fields)

        if refused := _others(tuple(ArtifactFormat), row.formats):
            able = [name for name, other in self.methods.items() if set(refused) <= set(other.formats)]
            without = f" without spec.{_any_of([f'method.{name}' for name in able])}" if able else f" {with_method}"
            remedy = f", or set {_any_of([f'method.{name}' for name in able])}" if able else ""
            write = f"write [{', '.join(DEFAULT_FORMATS)}]"
            if not {*DEFAULT_FORMATS} <= {*row.formats}:  # so it must be written
                write = f"write [{', '.join(row.formats)}], because the default is [{', '.join(DEFAULT_FORMATS)}]"
            yield restriction(
                "output.formats",
                values=lambda spec: spec.output.formats,
                allowed=row.formats,
                within=_cel_all("output.formats"),
                requirement=lambda value: f"must not have {value}{without}; {write}{remedy}",
                refused=refused,
            )
        yield from self._stages_and_offloads(row.zero_stages, with_method, restriction)
        if refused := _others((False, True), row.gradient_checkpointing):
            yield restriction(
                "training.gradientCheckpointing",
                values=lambda spec: (spec.training.gradient_checkpointing,),
                allowed=row.gradient_checkpointing,
                within=_cel_within("training.gradientCheckpointing"),
                requirement=_checkpointing(row.gradient_checkpointing, with_method),
                refused=refused,
            )
        if refused := _others(tuple(Batching), row.batchings):
            yield restriction(
                "training.batching",
                values=_batching,
                allowed=row.batchings,
                within=_cel_within("training.batching"),
                requirement=_one_of(row.batchings, with_method),
                refused=refused,
            )
        yield from self._quantization_of_method(method, row)
        tasks = self._tasks(method, row)
        if refused := _others(tuple(self.tasks), tasks):
            yield restriction(
                "model.task",
                values=self._task_values,
                allowed=tasks,
                within=lambda _: " && ".join(
                    f"!({self._cel_is_task(task)})" for task in self.tasks if task not in tasks
                ),
                requirement=self._task_requirement(tasks, with_method),
                refused=refused,
            )

    def _task_requirement(self, tasks: Sequence[Task], with_method: str) -> Callable[[str], str]:
        """Of `model.task`, with the methods of a task that names them."""
        plain = _one_of(tasks, with_method)
        reasons = {
            task.value: f", or method: {{{row.methods[0]}: {{}}}} for {task}, {row.reason}"
            for task, row in self.tasks.items()
            if row.methods
        }
        return lambda value: plain(value) + "".join(text for name, text in reasons.items() if name in value)

    def _of_task(self, task: Task, row: TaskSupport) -> Iterator[Restriction]:
        def applies(spec: Spec) -> bool:
            return self.task_of(spec) == task

        def restriction(path: str, **fields: Any) -> Restriction:
            return Restriction(path, applies=applies, condition=self._cel_is_task(task), **fields)

        if refused := _others(tuple(DataFormat), row.formats):
            # Only an explicit task can contradict the format; otherwise the format determines the task.
            formats = _any_of(row.formats)
            yield Restriction(
                "model.task",
                applies=lambda spec: spec.model.task == task,
                values=lambda spec: () if spec.data.format is None else (spec.data.format,),
                allowed=row.formats,
                condition=f"has(self.model.task) && self.model.task == '{task}'",
                within=_cel_within("data.format"),
                requirement=lambda value: (
                    f"must fit spec.data.format, {value}, and {task} does not; remove task, or set format to {formats}"
                ),
                refused=refused,
            )
        if refused := _others(tuple(Metric), row.metrics):
            yield restriction(
                "training.earlyStopping.metric",
                values=lambda spec: (spec.training.early_stopping.metric,) if spec.training.early_stopping else (),
                allowed=row.metrics,
                within=_cel_within("training.earlyStopping.metric", present="training.earlyStopping"),
                requirement=lambda value: (
                    f"must be a metric of {row.model}s, not {value}; write {_any_of(row.metrics)}"
                ),
                refused=refused,
            )
            for path, values, within in _PROMOTION_METRICS:
                yield restriction(
                    path,
                    values=values,
                    allowed=row.metrics,
                    within=within,
                    requirement=lambda value: (
                        f"must be a metric of {row.model}s, not {value}; write {_any_of(row.metrics)}"
                    ),
                    refused=refused,
                )
        if refused := _others(tuple(SimpleBaseline), row.baselines):
            able = f"; write {_any_of(row.baselines)}, or remove it" if row.baselines else "; remove it"
            yield restriction(
                "evaluation.simpleBaselines",
                values=lambda spec: spec.evaluation.simple_baselines or (),
                allowed=row.baselines,
                within=_cel_all("evaluation.simpleBaselines")
                if row.baselines
                else lambda _: "!has(self.evaluation.simpleBaselines) || self.evaluation.simpleBaselines.size() == 0",
                requirement=lambda value: f"must not have {value} for a {row.model}{able}",
                refused=refused,
            )
        if refused := _others(tuple(ArtifactFormat), row.artifacts):
            yield restriction(
                "output.formats",
                values=lambda spec: spec.output.formats,
                allowed=row.artifacts,
                within=_cel_all("output.formats"),
                requirement=lambda value: f"must not have {value} for a {row.model}; write {_any_of(row.artifacts)}",
                refused=refused,
            )
        if refused := _others(tuple(Batching), row.batchings):
            yield restriction(
                "training.batching",
                values=_batching,
                allowed=row.batchings,
                within=_cel_within("training.batching"),
                requirement=_one_of(row.batchings, f"for a {row.model}"),
                refused=refused,
            )
        yield from self._stages_and_offloads(row.zero_stages, f"for a {row.model}, {row.reason}", restriction)
        if not row.answers_prompts:
            yield restriction(
                "evaluation.prompts",
                values=lambda spec: ("prompts",) if spec.evaluation.prompts else (),
                allowed=(),
                within=lambda _: "!has(self.evaluation.prompts) || self.evaluation.prompts.size() == 0",
                requirement=lambda _: f"must be empty for a {row.model}, which does not answer prompts; remove them",
                refused=("prompts",),
            )

    def _stages_and_offloads(
        self, zero_stages: tuple[int, ...], reason: str, restriction: Callable[..., Restriction]
    ) -> Iterator[Restriction]:
        """The stages that a row allows, and the offloads that work with any of them."""
        if refused := _others(ZERO_STAGES, zero_stages):
            yield restriction(
                "deepspeed.zeroStage",
                values=_zero_stage,
                allowed=zero_stages,
                within=_cel_within("deepspeed.zeroStage"),
                requirement=_one_of(zero_stages, reason),
                refused=refused,
            )
        offloads = tuple(offload for offload, stages in self.offload.items() if {*stages} & {*zero_stages})
        if refused := _others(tuple(self.offload), offloads):
            yield restriction(
                "deepspeed.offload",
                values=_offload,
                allowed=offloads,
                within=_cel_within("deepspeed.offload"),
                requirement=_one_of(offloads, reason),
                refused=refused,
            )

    def _quantization_of_method(self, method: str, row: MethodSupport) -> Iterator[Restriction]:
        if not (refused := _others(tuple(Quantization), row.quantizations)):
            return
        able = [name for name, other in self.methods.items() if {*refused} <= {*other.quantizations}]
        remedy = f", or set {_any_of([f'method.{name}' for name in able])}" if able else ""
        yield Restriction(
            "model.quantization",
            applies=lambda spec: list(spec.method.given) == [method],
            values=lambda spec: () if spec.model.quantization is None else (spec.model.quantization,),
            allowed=row.quantizations,
            condition=f"has(self.method.{method})",
            within=_cel_within("model.quantization")
            if row.quantizations
            else lambda _: "!has(self.model.quantization)",
            requirement=lambda value: (
                f"must not be {value} with method.{method}, because quantized weights cannot be trained; remove "
                f"it{remedy}"
            ),
            refused=refused,
        )

    def _of_quantization(self, quantization: Quantization, stages: tuple[int, ...]) -> Iterator[Restriction]:
        def restriction(path: str, **fields: Any) -> Restriction:
            return Restriction(
                path,
                applies=lambda spec: spec.model.quantization is quantization,
                condition=f"has(self.model.quantization) && self.model.quantization == '{quantization}'",
                within=_cel_within(path),
                **fields,
            )

        reason = f"with quantization {quantization}"
        if refused := _others(ZERO_STAGES, stages):
            yield restriction(
                "deepspeed.zeroStage",
                values=_zero_stage,
                allowed=stages,
                requirement=_one_of(stages, reason),
                refused=refused,
            )
        offloads = tuple(offload for offload, usable in self.offload.items() if {*usable} & {*stages})
        if refused := _others(tuple(self.offload), offloads):
            yield restriction(
                "deepspeed.offload",
                values=_offload,
                allowed=offloads,
                requirement=_one_of(offloads, reason),
                refused=refused,
            )

    def _tasks(self, method: str, row: MethodSupport) -> tuple[Task, ...]:
        tasks = tuple(self.tasks) if row.tasks is None else row.tasks
        return tuple(task for task in tasks if task not in self.tasks or self.tasks[task].allows(method))

    def _task_values(self, spec: Spec) -> tuple[Task, ...]:
        task = self.task_of(spec)
        return () if task is None else (task,)

    def _cel_is_task(self, task: Task) -> str:
        implied = [data_format for data_format in self.tasks[task].formats if self.task_for(data_format) == task]
        by_format = f"has(self.data.format) && self.data.format in {_cel_list(implied)}" if implied else "false"
        return f"has(self.model.task) ? self.model.task == '{task}' : ({by_format})"

    def page(self) -> str:
        """docs/support.md."""
        by_method = [
            [
                f"`{name}`",
                _listed(self._tasks(name, row)),
                _listed(row.zero_stages),
                _listed(_text(value) for value in row.gradient_checkpointing),
                _listed(row.batchings),
                _listed(row.quantizations) or "none",
                _listed(row.formats),
            ]
            for name, row in self.methods.items()
        ]
        by_task = [
            [
                f"`{task}`",
                _listed(row.formats),
                _listed(row.batchings),
                _listed(row.metrics),
                _headline(row),
                _listed(row.baselines) or "none",
                _listed(row.artifacts),
                _listed(row.zero_stages),
                "yes" if row.answers_prompts else "no",
            ]
            for task, row in self.tasks.items()
        ]
        methods = ["`spec.method`", "`model.task`", "`deepspeed.zeroStage`", "`training.gradientCheckpointing`"]
        methods += ["`training.batching`", "`model.quantization`", "`output.formats`"]
        return _PAGE.format(
            methods=_markdown(methods, by_method),
            tasks=_markdown(
                [
                    "`model.task`",
                    "`data.format`",
                    "`training.batching`",
                    "metrics",
                    "compared by",
                    "`evaluation.simpleBaselines`",
                    "`output.formats`",
                    "`deepspeed.zeroStage`",
                    "prompts",
                ],
                by_task,
            ),
            metrics=_markdown(
                ["metric", "meaning", "better", "tasks"],
                [
                    [
                        f"`{metric}`",
                        row.meaning,
                        "lower" if row.lower_is_better else "higher",
                        _listed(task for task, other in self.tasks.items() if metric in other.metrics),
                    ]
                    for metric, row in METRIC_SUPPORT.items()
                ],
            ),
            offload=_markdown(
                ["`deepspeed.offload`", "`deepspeed.zeroStage`"],
                [[f"`{name}`", _listed(stages)] for name, stages in self.offload.items()],
            ),
            dtypes=_markdown(
                ["`model.dtype`", "ZeRO stages"],
                [[f"`{name}`", _listed(stages)] for name, stages in DTYPE_ZERO_STAGES.items()],
            ),
            quantizations=_markdown(
                ["`model.quantization`", "`deepspeed.zeroStage`"],
                [[f"`{name}`", _listed(stages)] for name, stages in QUANTIZATION_ZERO_STAGES.items()],
            ),
        )


_PAGE = """<!-- Generated from operator/finetune_api/support.py by `make golden`. -->

# Supported combinations

A row lists what can be combined with the value in its first column. The API server, `finetune
validate` and the operator reject any other combination, and report the field and how to correct it.

## Fine-tuning methods

{methods}

A base model whose folder has quantized weights cannot be trained with any method: the job quantizes the base model
itself. `Packed`, `Int8`, `GGUF` and `CompressedTensors` also depend on the architecture of the base model, which the
prepare stage checks.

## Tasks

{tasks}

Without `spec.model.task`, the first task in the table that lists the data format is used. Prompts are those in
`spec.evaluation.prompts`. The column `compared by` has the metric of the report's verdict.

## Metrics

Metrics of the validation split, which can be used in `spec.training.earlyStopping`, and of the test split, which can be
used in `spec.evaluation.promote`.

{metrics}

## Offloading

{offload}

## Floating-point types

A lower stage in the spec is raised to the lowest one in the row, with a note.

{dtypes}

## Quantization of the base model

{quantizations}
"""


def _of_offload(offload: Offload, stages: tuple[int, ...]) -> Iterator[Restriction]:
    if refused := _others(ZERO_STAGES, stages):
        yield Restriction(
            "deepspeed.zeroStage",
            applies=lambda spec: spec.deepspeed.offload is offload,
            values=_zero_stage,
            allowed=stages,
            condition=f"has(self.deepspeed.offload) && self.deepspeed.offload == '{offload}'",
            within=_cel_within("deepspeed.zeroStage"),
            requirement=_one_of(stages, f"for offload {offload}"),
            refused=refused,
        )


def _zero_stage(spec: Spec) -> tuple[int, ...]:
    return () if spec.deepspeed.zero_stage is None else (spec.deepspeed.zero_stage,)


def _offload(spec: Spec) -> tuple[Offload, ...]:
    return () if spec.deepspeed.offload is None else (spec.deepspeed.offload,)


def _batching(spec: Spec) -> tuple[Batching, ...]:
    return () if spec.training.batching is None else (spec.training.batching,)


def _one_of(allowed: Sequence[Any], reason: str) -> Callable[[str], str]:
    values = [_text(value) for value in allowed]
    return lambda value: f"must be {' or '.join(values)} {reason}, not {value}; write {values[0]}"


def _checkpointing(allowed: Sequence[bool], reason: str) -> Callable[[str], str]:
    requirement, default = _one_of(allowed, reason), Training.model_fields["gradient_checkpointing"].default
    if default in allowed:
        return requirement
    # So it must be written.
    remedy = f"write gradientCheckpointing: {_text(allowed[0])}, because the default is {_text(default)}"
    return lambda value: f"{requirement(value).partition('; ')[0]}; {remedy}"


def _others(every: Sequence[Any], allowed: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value for value in every if value not in allowed)


def _text(value: Any) -> str:
    """Format a value as in YAML."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _any_of(values: Sequence[Any]) -> str:
    *first, last = [_text(value) for value in values]
    return f"{', '.join(first)} or {last}" if first else last


def _cel_list(values: Sequence[Any]) -> str:
    literals = (f"'{value}'" if isinstance(value, str) else _text(value) for value in values)
    return f"[{', '.join(literals)}]"


def _cel_within(path: str, *, present: str = "") -> Callable[[str], str]:
    return lambda allowed: f"!has(self.{present or path}) || self.{path} in {allowed}"


def _cel_all(path: str) -> Callable[[str], str]:
    return lambda allowed: f"!has(self.{path}) || self.{path}.all(one, one in {allowed})"


def _promotion_metric(spec: Spec) -> tuple[Metric, ...]:
    promote = spec.evaluation.promote
    return () if promote is None or promote.metric is None else (promote.metric,)


def _threshold_metrics(spec: Spec) -> tuple[Metric, ...]:
    promote = spec.evaluation.promote
    return () if promote is None else tuple(threshold.metric for threshold in promote.thresholds)


_PROMOTION_METRICS: tuple[tuple[str, Callable[[Spec], Sequence[Metric]], Callable[[str], str]], ...] = (
    (
        "evaluation.promote.metric",
        _promotion_metric,
        lambda allowed: (
            "!has(self.evaluation.promote) || !has(self.evaluation.promote.metric) || "
            f"self.evaluation.promote.metric in {allowed}"
        ),
    ),
    (
        "evaluation.promote.thresholds[].metric",
        _threshold_metrics,
        lambda allowed: (
            "!has(self.evaluation.promote) || !has(self.evaluation.promote.thresholds) || "
            f"self.evaluation.promote.thresholds.all(one, one.metric in {allowed})"
        ),
    ),
)
"""Path, values in a spec and CEL of the fields of `spec.evaluation.promote` that name a metric."""


def _headline(row: TaskSupport) -> str:
    if row.entity_headline is None:
        return f"`{row.headline}`"
    return f"`{row.entity_headline}` if a label has a prefix such as `{ENTITY_PREFIXES[0]}`, otherwise `{row.headline}`"


def _listed(values: Any) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SUPPORT = Support(
    methods={name: block.support for name, block in Method.blocks().items()},
    tasks=TASK_SUPPORT,
    offload=OFFLOAD_ZERO_STAGES,
)
"""The table of this version."""
