"""Writes the test split of a run as a task for lm-evaluation-harness.

For the exported model, lm-eval then reports the same loss and perplexity as the run's report. It reads texts, and the
prepared rows are tokens: each row is decoded, and refused or left out if re-encoding its text gives different tokens.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from finetune_api.run_layout import RunLayout, run_name
from finetune_api.trainer_config import Exchanged, JobRef
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Metric, Task

from ..data.shards import TokenDataset
from ..errors import BadConfigError, BadDataError, ObjectMissingError, StorageProtocolError
from ..model.files import is_tokenizer_file
from ..model.tokenizer import load_tokenizer
from ..run_record import PreparedRun
from ..store import ObjectStore
from ..tasks import IGNORED
from ..tasks.metrics import perplexity
from . import lm_eval_utils

TASK_FILE = "task.yaml"
UTILS_FILE = "utils.py"

_OTHER_TOKENS = "re-encoding the text gives different tokens"
_OTHER_PROMPT = "re-encoding the prompt without the answer gives different tokens"
_NO_CONTEXT = "only white space precedes the answer, and lm-eval needs text as context"
_SKIP = "add --skip to leave them out; the results will differ from the report"
_NONE_LEFT = "choose a run with a larger spec.data.maxLength or, for instructions, with a chat template"
_SHOWN = 80
"""Characters of a row in a message."""


class _Model(Exchanged):
    uri: str


class _Figures(Exchanged):
    metrics: dict[str, float] = {}
    tokens: int = 0


class _Evaluated(Exchanged):
    """The part of `evaluation.json` that is needed."""

    job: JobRef
    run: int
    model: _Model
    tuned: _Figures | None = None


@dataclass(frozen=True)
class Answer:
    """A part of a row that carries loss, and all that precedes it."""

    prompt: str
    answer: str
    tokens: int
    """Of the answer."""
    context: int
    """Characters at the start of the prompt that do not end with white space, and have the tokens of the row."""


class RowNotWritableError(Exception):
    """A row cannot be written as text for lm-eval. The message is the reason."""


@dataclass(frozen=True)
class WrittenTask:
    """The files of a task, and the metrics that lm-eval must reproduce."""

    name: str
    path: Path
    answers: int
    rows: int
    """Rows of the test split that carry loss."""
    left_out: Mapping[str, int]
    """Reason -> rows that are not written."""
    model_uri: str
    model_args: str
    """For `--model_args` of lm-eval, without the folder of the model."""
    loss: float
    """In nats, of the run's own evaluation on all rows."""
    tokens: int
    """Tokens that the loss is averaged over."""

    @property
    def perplexity(self) -> float:
        """Of the same evaluation."""
        return perplexity(self.loss)


class Texts:
    """Texts of tokens as lm-eval encodes them with `add_bos_token=False`. `tokenizer` is a fast one of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, which has its special tokens already."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, special ones included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def write_task(store: ObjectStore, run_uri: str, folder: Path, scratch: Path, *, skip: bool = False) -> WrittenTask:
    """Write the task of the run at `run_uri` into `folder`. `scratch` is an empty folder for downloads.

    `skip`: leave out rows that cannot be written as text. Raises BadDataError for such rows without it, BadConfigError
    for runs that lm-eval cannot evaluate, and ObjectMissingError if the run has no evaluation.
    """
    record, evaluated = _read(store, RunLayout(run_uri))
    figures, prepared, uri = _figures(record, evaluated, run_uri), record.prepared, evaluated.model.uri
    names = [info.uri.removeprefix(f"{uri}/") for info in store.list(f"{uri}/")]
    store.download_files(uri, [name for name in names if is_tokenizer_file(name)], scratch / "tokenizer")
    texts = Texts(load_tokenizer(scratch / "tokenizer"))
    rows = TokenDataset.open(store, prepared.dataset_uri, "test", scratch / "cache")
    answers = _Answers(scratch / lm_eval_utils.DATA_FILE, rows, texts)
    answers.check(run_uri, skip=skip)
    dtype = model_dtype(store.get_json(f"{uri}/config.json"), prepared.dtype)
    written = WrittenTask(
        name=f"{evaluated.job.name}-{run_name(evaluated.run)}",
        path=folder / TASK_FILE,
        answers=answers.count,
        rows=answers.rows + answers.left_out.total(),
        left_out=dict(answers.left_out),
        model_uri=uri,
        model_args=f"dtype={dtype},softmax_dtype=float32,add_bos_token=False,max_length={answers.longest}",
        loss=figures.metrics[Metric.LOSS],
        tokens=figures.tokens,
    )
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(answers.path, folder / answers.path.name)
    shutil.copyfile(lm_eval_utils.__file__, folder / UTILS_FILE)
    written.path.write_text(_task(written, run_uri), encoding="utf-8")
    return written


def model_dtype(config: Mapping[str, Any], chosen: Dtype) -> str:
    """Return the type of an exported model by its `config.json`, as torch names it.

    It differs from the one that the prepare stage has chosen if a GPU could not compute that. Without a type in the
    file, it is the chosen one.
    """
    written = config.get("dtype") or config.get("torch_dtype")
    return str(written) if written in {dtype.lower() for dtype in Dtype} else chosen.lower()


class _Answers:
    """The answers of all rows of a split, written to a file."""

    def __init__(self, path: Path, rows: TokenDataset, texts: Texts) -> None:
        self.path = path
        self.count = self.rows = self.longest = 0
        """Answers, rows that have them, and tokens of the longest of these rows."""
        self.left_out: Counter[str] = Counter()
        """Reason -> rows."""
        self._first = ""
        with path.open("w", encoding="utf-8") as file:
            for index in range(len(rows)):
                row = rows[index]
                try:
                    found = list(answers_of(row, texts))
                except RowNotWritableError as error:
                    self.left_out[str(error)] += 1
                    shown = texts.decode(row["input_ids"].tolist())[:_SHOWN]
                    self._first = self._first or f"the first one is row {index}: {shown!r}"
                    continue
                for answer in found:
                    file.write(json.dumps({"row": index, **vars(answer)}, ensure_ascii=False) + "\n")
                self.count += len(found)
                self.rows += bool(found)
                self.longest = max(self.longest, len(row["input_ids"]) if found else 0)

    def check(self, run_uri: str, *, skip: bool) -> None:
        """Raise BadDataError if rows are left out and `skip` does not allow it, or if no row is left."""
        if self.rows and (skip or not self.left_out):
            return
        if not self.rows and not self.left_out:
            raise BadDataError(
                f"{run_uri}: the test split must have a token that carries loss after the first token of a row",
                advice="choose a run whose spec.data.test has records with answers or texts of several tokens",
            )
        total = self.rows + self.left_out.total()
        reasons = "".join(f"\n- {reason}: {count:,} rows" for reason, count in self.left_out.most_common())
        count = f"{self.left_out.total():,} of {total:,}" if self.rows else f"all {total:,}"
        raise BadDataError(
            f"{count} rows of the test split cannot be written as text:{reasons}\n{self._first}",
            advice=_SKIP if self.rows else _NONE_LEFT,
        )


def answers_of(row: Mapping[str, Any], texts: Texts) -> Iterator[Answer]:
    """Yield the answers of a row of a `TokenDataset`, each with everything before it as prompt.

    The first token is never an answer, because a model does not predict it. Raises RowNotWritableError if re-encoding a
    text gives different tokens, or if lm-eval would have no context.
    """
    ids: list[int] = row["input_ids"].tolist()
    for start, end in _spans(np.asarray(row["labels"]) != IGNORED):
        prompt, text = texts.decode(ids[:start]), texts.decode(ids[:end])
        if not text.startswith(prompt) or texts.encode(text) != ids[:end]:
            raise RowNotWritableError(_OTHER_TOKENS)
        if texts.encode(prompt) != ids[:start]:
            raise RowNotWritableError(_OTHER_PROMPT)
        yield Answer(prompt, text[len(prompt) :], end - start, _context(ids[:start], prompt, texts))


def _spans(carries_loss: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of tokens that carry loss, except for the first token."""
    positions = range(1, len(carries_loss))
    for carries, run in groupby(positions, key=lambda position: bool(carries_loss[position])):
        if carries:
            found = list(run)
            yield found[0], found[-1] + 1


def _context(ids: list[int], prompt: str, texts: Texts) -> int:
    """Characters of the longest start of the prompt that is whole tokens and does not end with white space."""
    for end in range(len(ids), 0, -1):
        text = texts.decode(ids[:end])
        if text and not text[-1].isspace() and prompt.startswith(text) and texts.encode(text) == ids[:end]:
            return len(text)
    raise RowNotWritableError(_NO_CONTEXT)


def _read(store: ObjectStore, layout: RunLayout) -> tuple[PreparedRun, _Evaluated]:
    try:
        record = PreparedRun.model_validate_json(store.get(layout.record))
        evaluated = _Evaluated.model_validate_json(store.get(layout.evaluation))
    except ObjectMissingError as error:
        raise ObjectMissingError(
            f"{layout.uri} has no result: {error}",
            advice="write the folder of a run that has ended: s3://BUCKET/.../runs/r0001-...",
        ) from error
    except ValidationError as error:
        raise StorageProtocolError(f"{layout.uri} has an unreadable result: {error.errors()[0]['msg']}") from error
    return record, evaluated


def _figures(record: PreparedRun, evaluated: _Evaluated, uri: str) -> _Figures:
    """The metrics of the run. Raises BadConfigError if lm-eval cannot reproduce them."""
    prepared = record.prepared
    if prepared.task is not Task.CAUSAL_LM:
        raise BadConfigError(
            f"{uri}: task must be {Task.CAUSAL_LM} for lm-eval, not {prepared.task}",
            advice="choose a run of a language model",
        )
    if evaluated.tuned is None:
        raise BadConfigError(
            f"{uri}: the run must have a test split", advice="set spec.data.test in the job, which starts a new run"
        )
    if prepared.vocabulary is not None:
        raise BadConfigError(
            f"{uri}: spec.model.vocabulary must not be set for lm-eval, because the report's loss is per token of the "
            "base model's tokenizer, and that of lm-eval per token of the extended one",
            advice="choose a run without spec.model.vocabulary",
        )
    if evaluated.model.uri != RunLayout(uri).artifact(ArtifactFormat.MERGED):
        raise BadConfigError(
            f"{uri}: spec.output.formats must contain {ArtifactFormat.MERGED}, because lm-eval cannot load this "
            "adapter",
            advice=f"add {ArtifactFormat.MERGED} (no training needed), or choose another run if the method cannot "
            "export it",
        )
    return evaluated.tuned


def _task(written: WrittenTask, run_uri: str) -> str:
    skipped = sum(written.left_out.values())
    same = (
        f"{skipped:,} of {written.rows:,} rows are left out: the results will differ from the report."
        if skipped
        else "For the exported model, lm-eval reports the same."
    )
    return f"""\
# Test split of {run_uri}.
# The run's report has a loss of {written.loss:.6f} and a perplexity of {written.perplexity:.6g}.
# {same}
# The prompts already have the chat template and all special tokens: do not use --apply_chat_template.
task: {json.dumps(written.name)}
custom_dataset: !function utils.test_split
test_split: test
output_type: multiple_choice
doc_to_text: !function utils.context
doc_to_choice: !function utils.continuations
doc_to_target: 0
target_delimiter: ""
process_results: !function utils.process_results
num_fewshot: 0
metric_list:
  - metric: loss
    aggregation: !function utils.loss
    higher_is_better: false
  - metric: perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
metadata:
  version: 1.0
"""
