"""Every file of manifests/samples with real models and real data, end to end. `make samples` runs them (minutes
each)."""

import inspect
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import real_models
from finetune_api.constants import Phase
from finetune_api.v1alpha1 import CandidateName, FineTuneJob, Metric, PromotionOutcome
from finetune_cli.display.plain import PlainDisplay
from finetune_cli.job_file import read_job_file
from finetune_cli.local import demo_assets
from finetune_cli.local.runner import run_job
from finetune_cli.local.storage import LocalStorage
from finetune_trainer.store import ObjectStore
from rows import jsonl

SAMPLES = Path(__file__).parents[2] / "manifests/samples"
DATA = "s3://demo/data"


def conversations() -> Iterator[dict[str, Any]]:
    """Every question of the corpus with its answer, as a chat."""
    for path in sorted(demo_assets.corpus_folder().glob("*.yml")):
        for turns in YAML(typ="safe", pure=True).load(path)["conversations"]:
            if len(turns) > 1:
                question, answer = str(turns[0]), str(turns[1])
                yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def upload_questions(storage: LocalStorage) -> None:
    """Upload the demo's model and questions, as one file and divided into three."""
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    random.Random(1).shuffle(questions)
    store = storage.connect()
    storage.ensure_bucket("s3://demo/")
    store.upload_folder(demo_assets.model_folder(), "s3://demo/models/all-MiniLM-L6-v2")
    store.put(f"{DATA}/questions.jsonl", demo_assets.as_jsonl(questions))
    cuts = {"test": questions[:100], "validation": questions[100:200], "train": questions[200:]}
    for name, rows in cuts.items():
        store.put(f"{DATA}/questions-{name}.jsonl", demo_assets.as_jsonl(rows))


def run_sample(name: str, work_dir: Path, prepare: Any) -> FineTuneJob:
    file = read_job_file(SAMPLES / f"{name}.yaml")
    with PlainDisplay() as display:
        return run_job(file, work_dir=work_dir, endpoint=None, display=display, prepare=prepare).job


CLASSIFIERS = [
    ("quickstart", 0.8),
    ("guide", 0.3),
    ("zero3", 0.5),
    ("promote", 0.75),
    ("layer-freezing", 0.5),
    ("learning-rate", 0.7),
    ("pruning", 0.5),
    ("gradual-unfreezing", 0.3),
    ("learning-rate-schedule", 0.5),
    ("overfitting", 0.5),
    ("baselines", 0.8),
    ("clean", 0.5),
    ("dora", 0.3),
    ("pissa", 0.3),
    ("osft", 0.3),
    ("ia3", 0.3),
    ("layer-norm-tuning", 0.3),
    ("few-shot", 0.3),
    ("set-fit", 0.5),
    ("augmentation", 0.3),
    ("domain-vocabulary", 0.5),
]


@pytest.mark.parametrize(("name", "at_least"), CLASSIFIERS)
def test_a_classifier_learns_real_questions(name: str, at_least: float, tmp_path: Path) -> None:
    job = run_sample(name, tmp_path, upload_questions)
    assert job.status.phase is Phase.SUCCEEDED
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.ACCURACY] >= at_least
    assert tuned[Metric.ACCURACY] > baseline[Metric.ACCURACY]
    promotion = job.status.run.promotion
    assert (promotion is None) == (job.spec.evaluation.promote is None)
    assert promotion is None or promotion.outcome is PromotionOutcome.PROMOTED


def with_chat_model(storage: LocalStorage, folder: Path) -> ObjectStore:
    """A client of the storage, which has the chat model of the samples."""
    storage.ensure_bucket("s3://demo/")
    store = storage.connect()
    store.upload_folder(folder, "s3://demo/models/SmolLM2-135M-Instruct")
    return store


CHATS = ["chat-lora", "qlora", "packing", "prompt-tuning", "p-tuning", "prefix-tuning", "quantized-export"]


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_model_learns_real_answers(name: str, tmp_path: Path, smollm2_folder: Path) -> None:
    def upload(storage: LocalStorage) -> None:
        store = with_chat_model(storage, smollm2_folder)
        store.put(f"{DATA}/conversations.jsonl", jsonl(conversations()))

    job = run_sample(name, tmp_path, upload)
    assert job.status.phase is Phase.SUCCEEDED
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.PERPLEXITY] < baseline[Metric.PERPLEXITY]
    if name == "quantized-export":
        int8, packed = CandidateName.INT8, CandidateName.COMPRESSED_TENSORS
        for export in (int8, packed, CandidateName.GGUF_Q8_0, CandidateName.GGUF_Q4_0):
            assert job.status.metrics_of(export)[Metric.PERPLEXITY] < baseline[Metric.PERPLEXITY]


PREFERENCE = "preference"


def test_a_chat_model_prefers_the_chosen_answers(tmp_path: Path, smollm2_folder: Path) -> None:
    """The rejected answer is that of another question."""

    def upload(storage: LocalStorage) -> None:
        store = with_chat_model(storage, smollm2_folder)
        found = [chat["messages"] for chat in conversations()]
        answers = [messages[1] for messages in found]
        rows = [
            {"prompt": messages[:1], "chosen": [chosen], "rejected": [rejected]}
            for messages, chosen, rejected in zip(found, answers, [*answers[7:], *answers[:7]], strict=True)
            if chosen != rejected
        ]
        store.put(f"{DATA}/preferences.jsonl", jsonl(rows))

    job = run_sample(PREFERENCE, tmp_path, upload)
    assert job.status.phase is Phase.SUCCEEDED
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.ACCURACY] > baseline[Metric.ACCURACY]
    assert tuned[Metric.MARGIN] > baseline[Metric.MARGIN]


MASKED = "continued-pre-training"


def test_an_encoder_learns_real_texts(tmp_path: Path) -> None:
    def upload(storage: LocalStorage) -> None:
        storage.ensure_bucket("s3://demo/")
        store = storage.connect()
        store.upload_folder(real_models.minilm_with_mask_head(tmp_path / "minilm"), "s3://demo/models/MiniLM-L6-MLM")
        store.put(f"{DATA}/documents.jsonl", jsonl([{"text": text} for text in docstrings(120)]))

    job = run_sample(MASKED, tmp_path, upload)
    assert job.status.phase is Phase.SUCCEEDED
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.PERPLEXITY] < baseline[Metric.PERPLEXITY] / 10, "the head of the base model is random"
    assert job.status.run.promotion is not None
    assert job.status.run.promotion.outcome is PromotionOutcome.PROMOTED


def docstrings(most: int) -> list[str]:
    """Documentation of scikit-learn, a text for each class and function."""
    from sklearn.utils.discovery import all_estimators, all_functions

    found = {inspect.getdoc(thing) or "" for _, thing in [*all_estimators(), *all_functions()]}
    return sorted(text for text in found if len(text) > 200)[:most]


def texts(language: str) -> list[str]:
    """Every conversation of the corpus in a language."""
    folder = demo_assets.corpus_folder().parent / language
    return [
        "\n".join(map(str, turns))
        for path in sorted(folder.glob("*.yml"))
        for turns in YAML(typ="safe", pure=True).load(path)["conversations"]
    ]


def test_a_domain_is_learned_with_replay_of_general_text(tmp_path: Path, smollm2_folder: Path) -> None:
    def upload(storage: LocalStorage) -> None:
        store = with_chat_model(storage, smollm2_folder)
        for name, language in (("domain", "italian"), ("general", "english")):
            found = sorted(set(texts(language)))
            random.Random(1).shuffle(found)
            for suffix, part in (("-test", found[:20]), ("", found[20:])):
                store.put(f"{DATA}/{name}{suffix}.jsonl", jsonl([{"text": text} for text in part]))

    job = run_sample("replay", tmp_path, upload)
    assert job.status.phase is Phase.SUCCEEDED
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.PERPLEXITY] < baseline[Metric.PERPLEXITY]
    before, after = map(job.status.regression_sets_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    # The general texts of the training are like those of the set.
    assert after["general"][Metric.PERPLEXITY] < 1.1 * before["general"][Metric.PERPLEXITY]


FILTERED = "filter"


def test_a_domain_is_learned_from_texts_in_several_languages(tmp_path: Path, smollm2_folder: Path) -> None:
    def upload(storage: LocalStorage) -> None:
        store = with_chat_model(storage, smollm2_folder)
        found = ["\n".join(part) for name in ("english", "italian", "german") for part in batched(texts(name)[:240], 6)]
        random.Random(1).shuffle(found)
        store.put(f"{DATA}/crawl.jsonl", jsonl([{"text": text} for text in found]))

    job = run_sample(FILTERED, tmp_path, upload)
    assert job.status.phase is Phase.SUCCEEDED
    assert any("languages dropped" in warning and "it " in warning for warning in job.status.run.warnings)
    baseline, tuned = map(job.status.metrics_of, (CandidateName.BASE_MODEL, CandidateName.TUNED))
    assert tuned[Metric.PERPLEXITY] < baseline[Metric.PERPLEXITY]


def batched(found: list[str], size: int) -> Iterator[list[str]]:
    return (found[start : start + size] for start in range(0, len(found), size))


OTHERS = [PREFERENCE, MASKED, "replay", FILTERED]


def test_every_sample_is_tested_here() -> None:
    tested = [name for name, _ in CLASSIFIERS] + CHATS + OTHERS
    assert sorted(path.stem for path in SAMPLES.glob("*.yaml")) == sorted(tested)
