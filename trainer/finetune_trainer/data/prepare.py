"""The prepare stage: checks data, model, storage and memory, so that errors are found before training starts.

It chooses the settings that the user did not set, then reuses the dataset of the same inputs or builds it.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from finetune_api.evaluation_needs import EvaluationNeeds, model_copies
from finetune_api.rules import FORMATS_WITH_PROMPTS, limiting_memory, memory_fingerprint, task_of, violations
from finetune_api.run_layout import dataset_folder
from finetune_api.support import NEW_TOKEN_ZERO_STAGES, QUANTIZATION_ZERO_STAGES, SUPPORT, ZERO_STAGES
from finetune_api.trainer_config import ExtendedVocabulary, Prepared, PreparedConfig, RuleCounts, TrainerConfig
from finetune_api.v1alpha1 import ArtifactFormat, Batching, Data, DataFormat, Dtype, Offload, Spec, Task
from finetune_api.v1alpha1.quantities import amount

from ..errors import BadConfigError, BadDataError, ModelUnusableError
from ..methods import METHODS
from ..model.activations import guess_note
from ..model.checkpointed_layers import check_every_n_layers
from ..model.chunk_check import check_chunks
from ..model.drop_check import check_dropped_layers
from ..model.estimate import TrainingShape, base_bytes, quantization_note
from ..model.fetch import ModelFolder, fetch_model, store_copy
from ..model.inspect import ModelFacts, check_task, inspect_model, tensor_shapes
from ..model.memory_choice import MemoryChoice, choose_memory_settings
from ..model.pack_check import check_packs
from ..model.quantize import quantizable
from ..model.quantize_check import check_quantization
from ..model.quantized_formats import check_quantized_exports
from ..model.tokenizer import check_special_tokens, embedding_too_small, load_tokenizer, tokenizer_digest
from ..model.vocabulary import Extension, Forms, choose_tokens, note_of, unused_note, write_extended
from ..model.weights import WeightPlan, plan_weights
from ..progress import ProgressReporter
from ..run_record import record_run
from ..runtime import RuntimeEnv
from ..stage_context import StageContext
from ..stage_log import log_prepared
from ..store.client import ObjectStore
from ..store.uri import join
from ..tasks import TASKS
from ..tasks.base import LOSS_CHUNK_BYTES
from ..tracking.reports import check_installed
from .augmentation import Augmentation, augmentation_of
from .augmentation.synonyms import read_synonyms
from .base_tokens import BaseTokens
from .build import Inputs, Steps, build_dataset, steps_of
from .chat import TEMPLATE_DATE, renderer_of
from .domain_words import learned_forms, tokens_per_word
from .formats import FORMATS, Formatter, TemplateUse, detect_format
from .info import DATASET_FILE, DatasetInfo, read_dataset_info
from .order import grouping_of, pass_tokens
from .pack_saving import Costs, PackSaving, pack_saving
from .packs import efficiency, plan_packs
from .pipeline import dataset_digest
from .problems import BadRecords
from .prompts import check_prompts, format_prompts
from .readers import column_names
from .regression_sets import RegressionRows, regression_rows
from .same_content import check_held_out, read_once
from .shards import TokenDataset
from .sources import SourceFile, fetch_sources, listing_digest

_MIN_GROUPING_SAVING = 0.25
"""Minimum saving of computation for which rows are grouped by length, because grouping reduces randomness. Over five
seeds the loss was not higher (docs/benchmarks.md), but with one seed of the demo (10 % saved) it was 0.77, not 0.62."""
_MIN_PACKING_SAVING = 0.1
"""Minimum saving of computation for which a note names Packed."""
_NO_LIMIT = 10**9
"""Tokenizers without a maximum length report a number like 1e30."""
_MOST_WEIGHTS = 3
"""In a note."""
_NF4_WIDTHS = ": NF4 needs a multiple of 64 inputs; Int8 does not"
_MOST_NOTES = 8
"""In the status of a run."""

Files = dict[str, tuple[SourceFile, ...]]


def prepare(config: TrainerConfig, store: ObjectStore, runtime: RuntimeEnv, report: ProgressReporter) -> Prepared:
    """Check storage, model, data and memory, then build the dataset or reuse it.

    Raises BadDataError, ModelUnusableError, BadConfigError, AccessDeniedError or StorageUnreachableError; each message
    states the problem, its location and the fix.
    """
    spec = config.spec
    known_task = task_of(spec)
    check_installed(spec)
    with report.phase("check", "checking read and write access to object storage"):
        store.check_read_write(config.output_uri)
    with report.phase("model", f"fetching the base model {spec.model.uri}"):
        model = fetch_model(spec.model.uri, store, runtime.cache)
        facts = inspect_model(model.path, spec.model.uri)
        if known_task is not None:
            check_task(facts, spec.model.uri, known_task)
        tokenizer = load_tokenizer(model.path)
        store_copy(model, store, config.output_uri)
    with report.phase("fetch", "fetching the data files"):
        source_digest = listing_digest(spec.data, store)  # before: a file that changes meanwhile differs from it
        files, file_warnings = _fetch_files(spec.data, store, runtime.scratch / "sources")
        data_format = spec.data.format or _detected_format(spec.data, spec.model.task, files["train"])
    task = known_task or SUPPORT.task_for(data_format)
    _check_rules(spec, data_format)
    _check_model(facts, tokenizer, spec.model.uri, task)
    base = _Base(model, facts, tokenizer)
    model, facts, tokenizer, extension = _with_new_tokens(
        base, config, files, data_format, task, store, runtime, report
    )
    method_note = _checked_method(spec, model.path, task)
    plan = plan_weights(model.path, spec.model.uri, task)
    virtual_tokens = METHODS[spec.method.name].virtual_tokens(spec.method.block)
    facts = replace(
        completed_facts(facts, plan, spec.method.name, virtual_tokens),
        frozen=METHODS[spec.method.name].frozen_parameters(model.path, spec.method.block, TASKS[task], plan.new),
    )
    if plan.embeddings is not None:
        check_special_tokens(tokenizer, plan.embeddings, spec.model.uri)
    dtype = spec.model.dtype or (Dtype.BFLOAT16 if spec.workers.gpus_per_node > 0 else Dtype.FLOAT32)
    length = longest_allowed(spec.data.max_length, facts, tokenizer)
    _check_class(spec, plan, task, length)
    check_quantized_exports(spec, model.path, plan, runtime.scratch)
    quantized = _quantized_base(spec, plan, facts, task, dtype)
    choice = _memory_choice(config, facts, task, dtype, length + virtual_tokens, quantized.matrices)
    check_evaluation_fits(spec, EvaluationNeeds(facts.parameters, 0, dtype, copies=model_copies(spec)))
    formatter = make_formatter(data_format, spec.data, tokenizer, spec.model.uri)
    _check_prompts(spec, task, formatter, tokenizer, plan)
    inputs = Inputs(
        files,
        formatter,
        tokenizer,
        tokenizer_digest(model.path),
        task,
        length,
        _augmentation(spec, store, runtime.scratch / "synonyms"),
    )
    steps = steps_of(spec, inputs)
    digest = dataset_digest(files, steps)
    dataset_uri = dataset_folder(config.output_uri, digest)
    info, reused = _read_or_build(config, inputs, steps, digest, store, runtime, report)
    _check_dataset(spec, info, plan, tokenizer)
    regression_tokens = _prepare_regression_sets(spec, info, plan, tokenizer, store, runtime, report)
    vocabulary, unused = _vocabulary(
        extension, base, spec, dataset_uri, longest_allowed(_NO_LIMIT, facts, tokenizer), store, runtime
    )
    warnings = (
        *file_warnings,
        *_model_warnings(config, plan, _labeled_plan(spec, model.path, task, info.labels)),
        *unused,
    )
    for text in (*info.remarks, *warnings):
        report.warn(text)
    batching, batching_note = choose_batching(config, info, facts.parameters, task)
    prepared = Prepared(
        dataset_uri=dataset_uri,
        dataset_digest=digest,
        source_digest=source_digest,
        model_digest=model.digest,
        model_revision=base.model.revision,
        requested_revision=spec.model.uri.partition("@")[2] if base.model.revision else None,
        reused=reused,
        format=data_format,
        task=task,
        dtype=dtype,
        batching=batching,
        packs=plan_packs(info.lengths["train"], info.max_length).count if batching is Batching.PACKED else None,
        zero_stage=choice.stage,
        counts=info.counts,
        labels=info.labels,
        parameters=facts.parameters,
        frozen_parameters=facts.frozen,
        trained_parameters=METHODS[spec.method.name].parameters(facts, spec.method.block).trained,
        quantized_parameters=quantized.parameters,
        quantized_bytes=quantized.bytes,
        rules=tuple(
            RuleCounts(rule=each.rule, changed=each.changed, dropped=each.dropped, added=each.added)
            for each in info.rules
        ),
        test_tokens=info.tokens.get("test", 0),
        regression_tokens=regression_tokens,
        memory_estimate_bytes=choice.process_bytes,
        memory_fingerprint=memory_fingerprint(spec),
        host_estimate_bytes=choice.host_bytes,
        offload=choice.offload if spec.deepspeed.offload is None else Offload.NONE,
        micro_batch_limit=choice.micro_batch_limit,
        micro_batch_memory=limiting_memory(spec) if choice.micro_batch_limit else None,
        supports_gradient_checkpointing=plan.gradient_checkpointing,
        vocabulary=vocabulary,
        warnings=warnings,
        notes=(
            *_vocabulary_notes(vocabulary, extension, spec.model.uri),
            *notes_of(
                info,
                (
                    _format_note(spec, data_format),
                    batching_note,
                    _packing_note(config, info, facts, plan, task, batching),
                    choice.reason,
                    guess_note(facts) if spec.workers.gpus_per_node else "",
                    method_note,
                    _frozen_note(facts),
                    quantized.note,
                ),
                spec.data.max_length,
            ),
        )[:_MOST_NOTES],
    )
    log_prepared(config, prepared := _with_phase_note(config, prepared, model.path), info)
    return prepared


def _check_model(facts: ModelFacts, tokenizer: Any, uri: str, task: Task) -> None:
    """Raise ModelUnusableError if the task cannot be trained with the model or its tokenizer."""
    check_task(facts, uri, task)
    TASKS[task].masking(tokenizer, uri)


def _check_dataset(spec: Spec, info: DatasetInfo, plan: WeightPlan, tokenizer: Any) -> None:
    """Raise ModelUnusableError if the model does not know a token of the data, and BadConfigError if there are more
    training examples than the method is made for."""
    _check_tokens(info, plan, tokenizer, spec.model.uri)
    most, found = METHODS[spec.method.name].max_examples, info.counts.train
    if most is not None and found > most:
        raise BadConfigError(
            f"spec.method.{spec.method.name} must have at most {most:,} training examples, not {found:,}",
            advice="set spec.data.fewShot.perClass, or write method: {full: {}}",
        )


def _check_tokens(info: DatasetInfo, plan: WeightPlan, tokenizer: Any, uri: str) -> None:
    """Raise ModelUnusableError if the embeddings lack a row for a token of the data, or for one that may replace it."""
    largest = max(info.largest_token, info.masking.vocabulary - 1 if info.masking else 0)
    if plan.embeddings is not None and largest >= plan.embeddings:
        raise embedding_too_small(tokenizer, largest, plan.embeddings, uri, "the data's token")


def _checked_method(spec: Spec, folder: Path, task: Task) -> str:
    """Check the method against the model, and return its note. Raises BadConfigError."""
    method = METHODS[spec.method.name]
    method.check(folder, spec.method.block, TASKS[task])
    return method.note(folder, spec.method.block, TASKS[task])


def _format_note(spec: Spec, data_format: DataFormat) -> str:
    return "" if spec.data.format else f"format {data_format}, by the columns of the first record"


def _frozen_note(facts: ModelFacts) -> str:
    if not facts.frozen:
        return ""
    share = facts.frozen / facts.parameters
    return f"{facts.frozen:,} of {facts.parameters:,} parameters of the base model are frozen ({share:.0%})"


def _with_phase_note(config: TrainerConfig, prepared: Prepared, folder: Path) -> Prepared:
    """Add a note about the phases of the training, if it has several, in place of the last of eight notes."""
    method, completed = config.spec.method, PreparedConfig.of(config, prepared)
    note = METHODS[method.name].phase_note(
        folder,
        method.block,
        TASKS[prepared.task],
        steps_per_epoch=completed.steps_per_epoch,
        total_steps=completed.total_steps,
    )
    return prepared.model_copy(update={"notes": (*prepared.notes[: _MOST_NOTES - 1], note)}) if note else prepared


class _Base(NamedTuple):
    """A base model: as it is at `spec.model.uri`, or with new tokens."""

    model: ModelFolder
    facts: ModelFacts
    tokenizer: Any
    extension: Extension | None = None
    """The new tokens."""


def _with_new_tokens(
    base: _Base,
    config: TrainerConfig,
    files: Files,
    data_format: DataFormat,
    task: Task,
    store: ObjectStore,
    runtime: RuntimeEnv,
    report: ProgressReporter,
) -> _Base:
    """Add the tokens of `spec.model.vocabulary`, if there are any, and store the resulting model."""
    vocabulary, uri, folder = config.spec.model.vocabulary, config.spec.model.uri, base.model.path
    if vocabulary is None:
        return base
    with report.phase("vocabulary", "adding tokens to the vocabulary"):
        forms, learned = Forms(folder, uri), list[str]()
        if vocabulary.learn is not None:
            rows = _rows_to_learn_from(base, config, files, data_format, task, store, runtime, report)
            learned = learned_forms(rows, forms, vocabulary.learn)
        extension = choose_tokens(forms, vocabulary.add, learned, vocabulary.learn or 0, uri)
        target = runtime.scratch / "extended-model"
        shutil.rmtree(target, ignore_errors=True)  # left by an interrupted process
        model = write_extended(folder, uri, task, plan_weights(folder, uri, task), extension, target)
        store_copy(model, store, config.output_uri)
    facts = inspect_model(model.path, uri)
    # Matrices with a row for each token: the embeddings, and the output matrix if it is stored.
    matrices = sum(shape == (facts.vocabulary, facts.hidden_size) for shape in tensor_shapes(model.path, uri).values())
    new_rows = len(extension.tokens.tokens) * (matrices if TASKS[task].has_token_logits else 1)
    return _Base(model, replace(facts, new_rows=new_rows), load_tokenizer(model.path), extension)


def _rows_to_learn_from(
    base: _Base,
    config: TrainerConfig,
    files: Files,
    data_format: DataFormat,
    task: Task,
    store: ObjectStore,
    runtime: RuntimeEnv,
    report: ProgressReporter,
) -> TokenDataset:
    """The training split in the tokens of the base model: the dataset of the spec without `vocabulary`, and without
    augmentation, whose changed words must not be learned."""
    spec, folder = config.spec, base.model.path
    plan = plan_weights(folder, spec.model.uri, task)
    facts = completed_facts(base.facts, plan, spec.method.name, virtual_tokens=0)
    length = longest_allowed(spec.data.max_length, facts, base.tokenizer)
    formatter = make_formatter(data_format, spec.data, base.tokenizer, spec.model.uri)
    inputs = Inputs(files, formatter, base.tokenizer, tokenizer_digest(folder), task, length)
    steps = steps_of(spec, inputs)
    digest = dataset_digest(files, steps)
    _read_or_build(config, inputs, steps, digest, store, runtime, report)
    return TokenDataset.open(store, dataset_folder(config.output_uri, digest), "train", runtime.cache)


def _read_or_build(
    config: TrainerConfig,
    inputs: Inputs,
    steps: Steps,
    digest: str,
    store: ObjectStore,
    runtime: RuntimeEnv,
    report: ProgressReporter,
) -> tuple[DatasetInfo, bool]:
    """The dataset with this digest, and whether it was in storage."""
    uri = dataset_folder(config.output_uri, digest)
    if store.exists(join(uri, DATASET_FILE)):
        return read_dataset_info(store, uri), True
    return build_dataset(config, inputs, steps, digest, store, runtime.scratch, report), False


def _vocabulary(
    extension: Extension | None,
    original: _Base,
    spec: Spec,
    dataset_uri: str,
    positions: int,
    store: ObjectStore,
    runtime: RuntimeEnv,
) -> tuple[ExtendedVocabulary | None, tuple[str, ...]]:
    """What the new tokens change, and warnings about words that the training split does not have."""
    if extension is None:
        return None, ()
    rows = TokenDataset.open(store, dataset_uri, "train", runtime.cache)
    made = ExtendedVocabulary(
        added=len(extension.tokens.tokens),
        original_digest=original.model.digest,
        positions=positions if positions < _NO_LIMIT else None,
        tokens_per_word=tokens_per_word(rows, extension.tokenizer, BaseTokens(extension.base, extension.tokens.pieces)),
    )
    words = spec.model.vocabulary.add if spec.model.vocabulary else ()
    unused = unused_note(extension, words, rows.occurring(extension.tokens.pieces)) if words else ""
    return made, (unused,) if unused else ()


def _vocabulary_notes(vocabulary: ExtendedVocabulary | None, extension: Extension | None, uri: str) -> tuple[str, ...]:
    if vocabulary is None or extension is None:
        return ()
    before, after = vocabulary.tokens_per_word
    added = f"{vocabulary.added:,} tokens added to the vocabulary: {before:.3g} -> {after:.3g} tokens per word"
    return tuple(note for note in (f"{added} of the training split", note_of(extension, uri)) if note)


def _check_prompts(spec: Spec, task: Task, formatter: Formatter, tokenizer: Any, plan: WeightPlan) -> None:
    if TASKS[task].support.answers_prompts:
        prompts = format_prompts(spec.evaluation.prompts, formatter, spec.model.uri)
        check_prompts(prompts, tokenizer, plan.embeddings, spec.model.uri)


def _check_rules(spec: Spec, data_format: DataFormat) -> None:
    """Check the rules that depend on the task, once the task is known from the data.

    Raises BadConfigError with all violations.
    """
    if spec.data.format is not None:
        return
    completed = spec.model_copy(update={"data": spec.data.model_copy(update={"format": data_format})})
    known = set(violations(spec, local=True))
    found = [str(violation) for violation in violations(completed, local=True) if violation not in known]
    if found:
        raise BadConfigError(
            "; ".join(found),
            advice=f"the data has the format {data_format}; change these fields, or set spec.data.format",
        )


def _check_class(spec: Spec, plan: WeightPlan, task: Task, length: int) -> None:
    """Raise BadConfigError if the class of the model does not work with packs, a chunked loss, fewer layers or
    checkpointing of every n-th layer, where the spec has them."""
    pruning, layers = spec.method.pruning, plan.checkpointable_layers
    if pruning is not None and pruning.layers:
        check_dropped_layers(plan.model_class, plan.config, spec.model.uri, pruning)
        layers = max(0, layers - pruning.layers)
    every = spec.training.gradient_checkpointing_every_n_layers
    check_every_n_layers(every, layers, plan.model_class.__name__)
    if spec.training.chunked_loss:
        check_chunks(plan.model_class, plan.config, spec.model.uri, TASKS[task])
    if spec.training.batching is Batching.PACKED:
        check_packs(plan.model_class, plan.config, spec.model.uri, TASKS[task], capacity=length)


def check_evaluation_fits(spec: Spec, needs: EvaluationNeeds) -> None:
    """Raise BadConfigError, before training, if the memory of the evaluate stage is too small for the model."""
    limit = spec.stages.evaluate.resources.limits.get("memory")
    if limit is not None and amount(limit) < needs.memory_bytes:
        whole = -(-needs.memory_bytes // 2**30)
        raise BadConfigError(
            f"spec.stages.evaluate.resources.limits.memory must be at least {whole}Gi to evaluate a model of "
            f"{needs.parameters:,} parameters in {needs.dtype}, not {limit}",
            advice=f"raise it to {whole}Gi, or remove it",
        )


def _fetch_files(data: Data, store: ObjectStore, folder: Path) -> tuple[Files, tuple[str, ...]]:
    """The files of each split, and warnings about those with the same content.

    Raises BadConfigError for a training file that is held out or has two weights.
    """
    files: Files = {}
    warnings: tuple[str, ...] = ()
    splits = {"train": data.train, "validation": data.validation.sources, "test": data.test.sources}
    for split, sources in splits.items():
        if sources is not None:
            field = "spec.data.train" if split == "train" else f"spec.data.{split}.sources"
            found, repeated = read_once(sources, fetch_sources(sources, field, store, folder), field)
            files[split] = tuple(replace(file, split=split) for file in found)
            warnings += repeated
    return files, (*warnings, *check_held_out(files))


def _augmentation(spec: Spec, store: ObjectStore, folder: Path) -> Augmentation | None:
    """Raises BadDataError for an unusable file of synonyms."""
    wanted = spec.data.augmentation
    if wanted is None or wanted.synonyms is None:
        return augmentation_of(spec, {}, "")
    field = "spec.data.augmentation.synonyms"
    found = fetch_sources([wanted.synonyms], field, store, folder)
    if len(found) != 1:
        raise BadDataError(f"{field}: {wanted.synonyms.uri} names {len(found)} files", advice="name one file")
    return augmentation_of(spec, read_synonyms(found[0]), found[0].sha256)


def _detected_format(data: Data, task: Task | None, files: tuple[SourceFile, ...]) -> DataFormat:
    bad = BadRecords(data.on_bad_record)
    for file in files:
        if (names := column_names(file, bad)) is not None:
            return detect_format(names, data.columns, task, file.uri)
    bad.raise_if_any()
    raise BadDataError("the files of spec.data.train have no records", advice="check the files of spec.data.train")


def longest_allowed(wanted: int, facts: ModelFacts, tokenizer: Any) -> int:
    """Maximum tokens of a row: what the user set, limited to what model and tokenizer accept."""
    limits = [facts.positions, tokenizer.model_max_length]
    return min([wanted, *(int(limit) for limit in limits if limit is not None and 0 < limit < _NO_LIMIT)])


def completed_facts(facts: ModelFacts, plan: WeightPlan, method: str, virtual_tokens: int) -> ModelFacts:
    """The facts of config.json and weight files, corrected for the model's code and the fine-tuning method.

    `virtual_tokens` are the positions of every row that the method uses. Raises BadConfigError if fewer than two tokens
    remain (the first token is never predicted).
    """
    limits = [limit for limit in (facts.positions, plan.positions) if limit is not None]
    if virtual_tokens and limits and min(limits) - virtual_tokens < 2:
        raise BadConfigError(
            f"spec.method.{method} must leave room for the data: it takes {virtual_tokens} of the {min(limits)} tokens "
            "that the base model can read at once",
            advice=f"lower the number of virtual tokens to at most {max(0, min(limits) - 2)}, or choose another method",
        )
    positions = min(limits) - virtual_tokens if limits else None
    return replace(facts, positions=positions, gradient_checkpointing=plan.gradient_checkpointing)


def _labeled_plan(spec: Spec, folder: Path, task: Task, labels: tuple[str, ...]) -> WeightPlan:
    """Raises BadConfigError if the labels of the data make a classifier new that the method would freeze."""
    plan = plan_weights(folder, spec.model.uri, task, labels)
    METHODS[spec.method.name].frozen_parameters(folder, spec.method.block, TASKS[task], plan.new)
    return plan


def _model_warnings(config: TrainerConfig, plan: WeightPlan, labeled: WeightPlan) -> tuple[str, ...]:
    """Warnings about the base model: `plan` is for its own labels, `labeled` for the labels of the data."""
    found = [labeled.labels.note]
    if plan.unused:
        found.append(
            f"config.json of the base model does not describe {len(plan.unused)} of its weights, which are ignored: "
            f"{', '.join(plan.unused[:3])}"
        )
    if config.spec.training.gradient_checkpointing and not plan.gradient_checkpointing:
        found.append(
            f"{plan.model_class.__name__} does not support gradient checkpointing, so it is trained without it: "
            "training uses more memory"
        )
    return tuple(warning for warning in found if warning)


@dataclass(frozen=True)
class _QuantizedBase:
    """What `spec.model.quantization` makes of the base model; zeros without it."""

    matrices: tuple[tuple[int, int], ...] = ()
    """Outputs and inputs of the layers that are quantized."""
    parameters: int = 0
    bytes: int = 0
    """Of all weights, with those that are not quantized."""
    note: str = ""


def _quantized_base(spec: Spec, plan: WeightPlan, facts: ModelFacts, task: Task, dtype: Dtype) -> _QuantizedBase:
    """Raises BadConfigError if the base model has nothing to quantize, or computes something else then."""
    kind = spec.model.quantization
    if kind is None:
        return _QuantizedBase()
    matrices = tuple(quantizable(kind, plan.matrices).values())
    if not matrices:
        raise BadConfigError(
            f"spec.model.quantization must not be {kind} for {spec.model.uri}: {plan.model_class.__name__} has no "
            f"linear layers that can be quantized{_NF4_WIDTHS if plan.matrices else ''}",
            advice="remove it, or use another base model",
        )
    check_quantization(plan.model_class, plan.config, spec.model.uri, task)
    quantized = sum(outputs * inputs for outputs, inputs in matrices)
    size = base_bytes(facts.parameters, dtype, kind, matrices)
    note = quantization_note(kind, dtype=dtype, parameters=facts.parameters, quantized=quantized, quantized_bytes=size)
    return _QuantizedBase(matrices, quantized, size, note)


def _memory_choice(
    config: TrainerConfig,
    facts: ModelFacts,
    task: Task,
    dtype: Dtype,
    length: int,
    matrices: tuple[tuple[int, int], ...],
) -> MemoryChoice:
    """`length` includes the method's virtual tokens, which use as much memory as other tokens; `matrices` are those
    that are quantized."""
    spec = config.spec
    on_gpus = spec.workers.gpus_per_node > 0
    reduced, gathered = buffer_settings(spec)
    worker_limit = _bytes_of(spec.workers.resources.limits.get("memory"))
    trained, added = METHODS[spec.method.name].parameters(facts, spec.method.block)
    quantization = spec.model.quantization
    stages = ZERO_STAGES if quantization is None else QUANTIZATION_ZERO_STAGES[quantization]
    if spec.model.vocabulary is not None and spec.method.lora is not None:
        stages = NEW_TOKEN_ZERO_STAGES
    shape = TrainingShape(
        facts=facts,
        has_token_logits=TASKS[task].has_token_logits,
        dtype=dtype,
        method=spec.method.name,
        trained=trained,
        added=added,
        optimizer=spec.training.optimizer.name,
        activations=METHODS[spec.method.name].activations(facts, spec.method.block),
        zero_stages=tuple(stage for stage in _zero_stages(spec, task) if stage in stages),
        logits_limit=LOSS_CHUNK_BYTES if spec.training.chunked_loss else None,
        quantization=quantization,
        matrices=matrices,
        is_merged=ArtifactFormat.MERGED in spec.output.formats,
        lighter_methods=lighter_methods(
            facts, trained, task, spec.output.formats, gradient_checkpointing=spec.training.gradient_checkpointing
        ),
        nodes=spec.workers.min_nodes or spec.workers.nodes,
        is_fewest=spec.workers.min_nodes is not None,
        processes_per_node=max(1, spec.workers.gpus_per_node),
        micro_batch=config.batch.micro_size,
        global_batch=config.batch.global_size,
        length=length * METHODS[spec.method.name].training_task(TASKS[task]).texts_per_row,
        is_packed=spec.training.batching is Batching.PACKED,
        gradient_checkpointing=spec.training.gradient_checkpointing and facts.gradient_checkpointing,
        checkpoint_every=spec.training.gradient_checkpointing_every_n_layers,
        on_gpus=on_gpus,
        reduce_elements=reduced,
        gathered_elements=gathered,
    )
    return choose_memory_settings(
        shape,
        requested=spec.deepspeed.zero_stage,
        limit=_bytes_of(spec.workers.gpu_memory) if on_gpus else worker_limit,
        host_limit=worker_limit,
        offload=spec.deepspeed.offload,
        may_reduce=spec.training.micro_batch_size is None,
    )


def _bytes_of(quantity: str | None) -> int | None:
    return None if quantity is None else int(amount(quantity))


def buffer_settings(spec: Spec) -> tuple[int | None, int | None]:
    """Return the elements of a bucket of gradients, and those that stage 3 keeps gathered, where
    `spec.deepspeed.config` sets them."""
    zero = (spec.deepspeed.config or {}).get("zero_optimization", {})
    reduced, gathered = zero.get("reduce_bucket_size"), zero.get("stage3_max_live_parameters")
    return (
        int(reduced) if isinstance(reduced, int | float) else None,
        int(gathered) if isinstance(gathered, int | float) else None,
    )


def _zero_stages(spec: Spec, task: Task) -> tuple[int, ...]:
    of_task = TASKS[task].support.zero_stages
    stages = tuple(stage for stage in spec.method.block.support.zero_stages if stage in of_task)
    return tuple(stage for stage in stages if stage < 3) if spec.training.chunked_loss else stages


def lighter_methods(
    facts: ModelFacts, trained: int, task: Task, formats: Collection[ArtifactFormat], *, gradient_checkpointing: bool
) -> dict[str, tuple[int, int]]:
    """Methods that train fewer parameters and support the task, the output formats and the gradient checkpointing.

    Name -> numbers of trained and added parameters, sorted by trained parameters, largest first: the first is closest
    to the requested method.
    """
    rows = {name: METHODS[name].block.support for name in METHODS}
    usable = [
        name
        for name, row in rows.items()
        if METHODS[name].saves_memory
        and task in (row.tasks or tuple(Task))
        and TASKS[task].support.allows(name)
        and {*formats} <= {*row.formats}
        and gradient_checkpointing in row.gradient_checkpointing
    ]
    counts = {name: METHODS[name].parameters(facts, METHODS[name].block()) for name in usable}
    lighter = {name: count for name, count in counts.items() if count.trained < trained}
    return {name: lighter[name] for name in sorted(lighter, key=lambda name: -lighter[name].trained)}


def make_formatter(
    data_format: DataFormat, data: Data, tokenizer: Any, model_uri: str, today: date = TEMPLATE_DATE
) -> Formatter:
    """The formatter for a tokenizer; `today` is the date that a chat template gets.

    Raises ModelUnusableError if the format needs a chat template and the model has none or an invalid one.
    """
    form = FORMATS[data_format]
    # A set of `regressionSets` may have a format without prompts.
    on_inputs = data.train_on_inputs and data_format in FORMATS_WITH_PROMPTS
    renderer = (
        None if form.template is TemplateUse.NEVER else renderer_of(tokenizer, today, everything_carries_loss=on_inputs)
    )
    if form.template is TemplateUse.REQUIRED and renderer is None:
        raise ModelUnusableError(
            f"{model_uri} has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja)",
            advice="choose an instruction-tuned base model, or convert the data to prompt and completion columns",
        )
    begin, end = _added_tokens(tokenizer)
    group_by = data.validation.group_by or data.test.group_by
    if form.tokenizer_adds_ends:
        return Formatter(data_format, data.columns, bos=begin, eos=end, group_by=group_by)
    bos = begin if begin == tokenizer.bos_token else ""
    eos = tokenizer.eos_token or ""
    return Formatter(
        data_format, data.columns, renderer, bos=bos, eos=eos, group_by=group_by, train_on_inputs=on_inputs
    )


def _prepare_regression_sets(
    spec: Spec,
    info: DatasetInfo,
    plan: WeightPlan,
    tokenizer: Any,
    store: ObjectStore,
    runtime: RuntimeEnv,
    report: ProgressReporter,
) -> int:
    """Make the sets before the training, so that the evaluate stage does not fail on their files. Returns the number of
    their tokens."""
    if not spec.evaluation.regression_sets:
        return 0
    with report.phase("regression sets", "preparing the regression sets"):
        infos = [found.rows.info for found in open_regression_sets(spec, info, tokenizer, store, runtime).values()]
    for one in infos:
        _check_tokens(one, plan, tokenizer, spec.model.uri)
    return sum(sum(one.tokens.values()) for one in infos)


def open_regression_sets(
    spec: Spec, info: DatasetInfo, tokenizer: Any, store: ObjectStore, runtime: RuntimeEnv
) -> dict[str, RegressionRows]:
    """The rows of `spec.evaluation.regressionSets` by name, formatted like the training data that `info` describes.

    Raises as `regression_rows` does, and ModelUnusableError if a format needs a chat template and there is none.
    """
    day = info.template_date or TEMPLATE_DATE
    formatters = {
        wanted.name: make_formatter(wanted.format or info.format, spec.data, tokenizer, spec.model.uri, day)
        for wanted in spec.evaluation.regression_sets
    }
    scratch, cache = runtime.scratch, runtime.cache
    return regression_rows(spec, info, formatters, tokenizer, store, scratch=scratch, cache=cache)


def _added_tokens(tokenizer: Any) -> tuple[str, str]:
    """The special tokens that the tokenizer adds before and after a text; empty if it adds none."""
    (encoding,) = tokenizer("a").encodings
    special = [token if flag else "" for token, flag in zip(encoding.tokens, encoding.special_tokens_mask, strict=True)]
    return (special[0], special[-1]) if special else ("", "")


def choose_batching(config: TrainerConfig, info: DatasetInfo, parameters: int, task: Task) -> tuple[Batching, str]:
    """The batching that the user set, otherwise the cheaper one, with the reason for the choice."""
    histogram = info.lengths["train"]
    if TASKS[task].support.batchings == (Batching.PADDED,):
        return Batching.PADDED, ""
    if config.spec.training.batching is Batching.PACKED:
        return Batching.PACKED, _pack_note(histogram, info.max_length)
    if config.spec.training.batching is not None:
        return config.spec.training.batching, ""
    if METHODS[config.spec.method.name].training_task(TASKS[task]).texts_per_row > 1:
        return Batching.PADDED, "batching Padded: rows with several texts cannot be grouped by the length of one"
    lengths = np.repeat(np.array(list(histogram), dtype=np.int32), list(histogram.values()))
    saved = grouping_of(config, lengths, parameters).saved
    if saved <= _MIN_GROUPING_SAVING:
        return Batching.PADDED, f"batching Padded: grouping by length would save {max(saved, 0):.0%} of the computation"
    return Batching.LENGTH_GROUPED, f"batching LengthGrouped: saves {saved:.0%} of the computation"


def _packing_note(
    config: TrainerConfig, info: DatasetInfo, facts: ModelFacts, plan: WeightPlan, task: Task, batching: Batching
) -> str:
    """Say what Packed would save, if the spec leaves the batching open, it is much, and the model supports it."""
    spec = config.spec
    supported = spec.method.block.support.batchings
    if spec.training.batching is not None or task is not Task.CAUSAL_LM or Batching.PACKED not in supported:
        return ""
    saving = packing_saving(config, info, facts, batching)
    if saving is None or saving.share < _MIN_PACKING_SAVING:
        return ""
    try:
        check_packs(plan.model_class, plan.config, spec.model.uri, TASKS[task], capacity=info.max_length)
    except BadConfigError:
        return ""
    return (
        f"spec.training.batching Packed would save about {saving.share:.0%} of the computation, with about as many "
        f"steps at spec.training.globalBatchSize {saving.global_batch}"
    )


def packing_saving(
    config: TrainerConfig, info: DatasetInfo, facts: ModelFacts, batching: Batching
) -> PackSaving | None:
    """What packs would save, compared with `batching`."""
    histogram = info.lengths["train"]
    lengths = np.repeat(np.array(list(histogram), dtype=np.int32), list(histogram.values()))
    is_grouped = batching is Batching.LENGTH_GROUPED
    return pack_saving(
        lengths,
        config.batch,
        packs=plan_packs(histogram, info.max_length).count,
        capacity=info.max_length,
        groups=grouping_of(config, lengths, facts.parameters).groups if is_grouped else None,
        seed=config.spec.training.seed,
        costs=Costs(
            fixed=pass_tokens(facts.parameters, gpu=config.spec.workers.gpus_per_node > 0),
            attention=2 * facts.layers * (facts.attention_size or facts.hidden_size) / max(1, facts.parameters),
        ),
    )


def _pack_note(histogram: Mapping[int, int], capacity: int) -> str:
    plan, rows = plan_packs(histogram, capacity), sum(histogram.values())
    return (
        f"batching Packed: {rows} examples in {plan.count} packs of at most {capacity} tokens, which are "
        f"{efficiency(histogram, plan, capacity):.1%} full; a batch size of 1 is about {rows / plan.count:.3g} examples"
    )


def notes_of(info: DatasetInfo, chosen: tuple[str, ...], wanted_length: int) -> tuple[str, ...]:
    """At most _MOST_NOTES notes, those about dropped and truncated records first. All remarks are also logged as
    warnings."""
    notes = []
    if info.dropped:
        rules = ", ".join(f"{rule} {count}" for rule, count in info.dropped.items())
        notes.append(f"dropped {sum(info.dropped.values())} records: {rules}")
    for split, count in info.truncated.items():
        if count:
            rows = getattr(info.counts, split)
            notes.append(f"truncated {count} of {rows} {split} rows to {info.max_length} tokens")
    if divided := sum(info.divided.values()):
        rows, documents = sum(sum(lengths.values()) for lengths in info.lengths.values()), sum(info.documents.values())
        notes.append(
            f"split {divided} of {documents} texts into rows of at most {info.max_length} tokens: {rows} rows in total"
        )
    if dropped := sum(info.dropped_tokens.values()):
        total = sum(info.tokens.values())
        notes.append(f"dropped {dropped} of {total} tokens ({dropped / total:.1%}): beyond maxLength")
    notes += [f"{rule.rule} added {rule.added} copies of training records" for rule in info.rules if rule.added]
    notes += _weights_note(info)
    if info.max_length < wanted_length:
        notes.append(f"maxLength {wanted_length} lowered to {info.max_length}, the maximum of the model")
    return tuple([*notes, *info.remarks, *(note for note in chosen if note)][:_MOST_NOTES])


def _weights_note(info: DatasetInfo) -> list[str]:
    weighted = [source for source in info.weights if source.weight != 1]
    if not weighted:
        return []
    shown = [
        f"{source.weight:g} of {source.uri}: {source.before:,} -> {source.after:,} records"
        for source in weighted[:_MOST_WEIGHTS]
    ]
    more = f"; and {len(weighted) - len(shown)} more" if len(weighted) > len(shown) else ""
    return [f"weights in the training split: {'; '.join(shown)}{more}"]


def run(context: StageContext) -> Prepared:
    """Run the stage: prepare the data, and store its result for the next stages."""
    prepared = prepare(context.config, context.store, context.runtime, context.report)
    record_run(context.store, context.config, prepared)
    return prepared
