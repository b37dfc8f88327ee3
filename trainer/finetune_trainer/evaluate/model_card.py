"""The model card: README.md of a model folder, as the Hugging Face hub shows it. Pure.

The front matter follows the hub's model card metadata: `base_model`, `library_name`, `pipeline_tag`, `tags` and the
metrics in `model-index` form.
"""

import html
import re

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from finetune_api.comparison import OVERFLOW, delta_text, metric_name, metric_text, share_text
from finetune_api.run_layout import gguf_file
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import METRIC_SUPPORT, ArtifactFormat

from ..methods import METHODS
from ..model.portable import OLDEST_COMPRESSED_TENSORS, OLDEST_PEFT, OLDEST_TRANSFORMERS, base_name
from ..tasks import TASKS
from ..tasks.metrics import FEW_EXAMPLES
from . import compare, formatting
from .configuration import spec_document, yaml_text
from .data_section import DataSection
from .records import Evaluation

_TAGS = {
    ArtifactFormat.INT8: ("8-bit", "bitsandbytes"),
    ArtifactFormat.GGUF: ("gguf",),
    ArtifactFormat.COMPRESSED_TENSORS: ("compressed-tensors",),
}
"""Tags of the hub for a format."""


def model_card(record: Evaluation, config: TrainerConfig, data: DataSection, artifact: ArtifactFormat) -> str:
    """README.md of an exported folder: front matter and Markdown."""
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        plain=plain,
        code=code,
        count=formatting.count_text,
        metric_name=metric_name,
        percent=share_text,
        digest=formatting.short_digest,
    )
    environment.globals.update(metric_text=metric_text, delta_text=delta_text)
    figures = record.tuned.classification if record.tuned else None
    configuration = yaml_text(spec_document(config.spec))
    folder = config.layout.artifact(artifact)
    body = environment.get_template("model_card.md.j2").render(
        record=record,
        config=config,
        data=data,
        verdict=compare.verdict(record),
        baselines=compare.baseline_rows(record),
        regression_sets=compare.regression_rows(record),
        method=METHODS[config.spec.method.name],
        with_labels=TASKS[record.task].has_labels,
        model_class=TASKS[record.task].auto_class,
        is_adapter=artifact is ArtifactFormat.ADAPTER,
        folder=folder,
        base_uri=config.spec.model.uri,
        base=base_name(config.spec.model.uri),
        oldest={
            "transformers": OLDEST_TRANSFORMERS,
            "peft": OLDEST_PEFT,
            "compressed-tensors": OLDEST_COMPRESSED_TENSORS,
        },
        gguf_files=[gguf_file(kind) for kind in config.spec.output.gguf_types]
        if artifact is ArtifactFormat.GGUF
        else [],
        is_quantized=artifact.is_quantized,
        is_int8=artifact is ArtifactFormat.INT8,
        scheme=config.spec.output.compressed_tensors_scheme if artifact is ArtifactFormat.COMPRESSED_TENSORS else None,
        checks=[
            (entry.uri.removeprefix(folder).removeprefix("/"), entry.sentence)
            for entry in record.reloaded
            if entry.uri == folder or entry.uri.startswith(f"{folder}/")
        ],
        worst=[row for row in compare.worst_classes(figures) if row.support][:5] if figures else [],
        pairs=compare.confused_pairs(figures, most=5) if figures else [],
        labeled=TASKS[record.task].labeled,
        limits=limits(record, config, data),
        configuration=configuration,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", configuration)), default=0)),
    )
    return f"---\n{front_matter(record, config, artifact).to_yaml()}\n---\n\n{body}"


def front_matter(record: Evaluation, config: TrainerConfig, artifact: ArtifactFormat) -> ModelCardData:
    """Metadata for the hub. For an `hf://` address, the base model is given by its hub name."""
    is_adapter = artifact is ArtifactFormat.ADAPTER
    results = _eval_results(record, config)
    return ModelCardData(
        base_model=base_name(record.base_model.uri)[0],
        base_model_relation="adapter" if is_adapter else "finetune",
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=TASKS[record.task].pipeline_tag,
        tags=["finetune-operator", "fine-tuned", *METHODS[config.spec.method.name].tags, *_TAGS.get(artifact, ())],
        # Without results, ModelCardData would write the name as a field that the hub does not support.
        model_name=f"{config.job.name}-{config.run_name}" if results else None,
        eval_results=results or None,
    )


def limits(record: Evaluation, config: TrainerConfig, data: DataSection) -> list[str]:
    """Limitations of the metrics, as plain text with one sentence each."""
    found = ["The limitations and licenses of the base model and of the training data also apply to this model."]
    test = config.spec.data.test
    if record.tuned is None:
        found.append("Nothing was measured on held-out data: there was no test split.")
        return found
    if test.fraction is not None:
        found.append(
            "The test split was drawn at random from the training files. The metrics apply to data like "
            "these, not to other data. Similar records may be in both the training and the test split."
        )
    found.extend(TASKS[record.task].limits)
    figures = record.tuned.classification
    if figures:
        few = [row for row in figures.per_class if row.support < FEW_EXAMPLES]
        if few:
            shown = compare.list_names(few, figures.hardly_tested + figures.untested)
            found.append(
                f"Classes with fewer than {FEW_EXAMPLES} test {TASKS[record.task].labeled}s, whose metrics are "
                f"imprecise: {shown}."
            )
        found.append("The model always predicts one of its classes, even if none applies.")
    if data.truncated:
        found.append(f"{data.truncated:,} examples were truncated to {data.max_length:,} tokens.")
    if data.dropped_tokens:
        share = data.dropped_tokens / data.tokens
        found.append(
            f"{data.dropped_tokens:,} of {data.tokens:,} tokens ({share:.1%}) were not used because they are beyond "
            f"the maximum length of {data.max_length:,} tokens."
        )
    return found


def plain(text: str) -> str:
    """Escape text from users for Markdown, also inside a table: no HTML, no markup, one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)


def code(text: str) -> str:
    """Format text from users as a code span."""
    return f"`{text.replace('`', chr(39))}`"


def _eval_results(record: Evaluation, config: TrainerConfig) -> list[EvalResult]:
    """One entry per finite metric of the tuned model; none without a test split."""
    if record.tuned is None:
        return []
    task = TASKS[record.task].pipeline_tag
    return [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").capitalize(),
            dataset_type=config.job.name,
            dataset_name=f"Test split of {config.job.name}",
            dataset_split="test",
            metric_type=METRIC_SUPPORT[metric].hub_type,
            metric_name=metric_name(metric),
            metric_value=round(value, 6),
        )
        for metric, value in record.tuned.metrics.items()
        if value < OVERFLOW  # an overflowed value is not a result
    ]
