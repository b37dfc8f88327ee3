"""The test split of a run as a task for lm-evaluation-harness, which must report the metrics of the run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from compared_runs import record, stored
from evaluation_runs import export_whole, prepared_config, questions, runtime_in, trained_model
from finetune_api.constants import Stage
from finetune_api.v1alpha1 import Metric
from finetune_trainer.data.info import DATASET_FILE, read_dataset_info
from finetune_trainer.data.shards import ShardWriter
from finetune_trainer.errors import BadConfigError, BadDataError, ObjectMissingError
from finetune_trainer.evaluate.lm_eval import Texts, write_task
from finetune_trainer.evaluate.stage import evaluate
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.run_record import record_run
from lm_eval_reader import documents, figures
from process_support import base_environment
from tiny_models import CHATML, save_tiny_llama


def evaluation(run: str, **fields: Any) -> bytes:
    """The fields of evaluation.json that are read."""
    job = {"namespace": "default", "name": "reviews", "uid": "u"}
    tuned = {"metrics": {"Loss": 1.0, "Perplexity": 2.7}, "tokens": 9}
    return json.dumps({"job": job, "run": 1, "model": {"uri": f"{run}/model"}, "tuned": tuned} | fields).encode()


def test_a_reader_of_the_task_reports_the_metrics_of_the_run(store, storage_settings, bucket, tmp_path) -> None:
    base = save_tiny_llama(tmp_path / "llama", CHATML)
    config = prepared_config(store, storage_settings, tmp_path, bucket=bucket, base=base, records=questions())
    record_run(store, config, config.prepared)
    export_whole(trained_model(config, store, tmp_path, epochs=2), config, store, tmp_path)
    report = ProgressReporter(tmp_path, stage=Stage.EVALUATE)
    result = evaluate(config, store, runtime_in(tmp_path / "evaluate"), report)
    assert result.baseline[Metric.LOSS] > 1.1 * result.tuned[Metric.LOSS]

    command = [sys.executable, "-m", "finetune_cli", "lm-eval", config.run_uri, "task"]
    command += ["--endpoint", str(storage_settings.endpoint)]
    done, again = (
        subprocess.run(command, cwd=tmp_path, env=base_environment(), capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (again.returncode, "task must be an empty folder" in again.stderr) == (2, True)
    out = done.stdout
    count = config.prepared.counts.test
    assert f"task.yaml: task reviews-r0001, {count} answers in {count} rows\n" in out
    assert f"loss {result.tuned[Metric.LOSS]:.6f}, perplexity {result.tuned[Metric.PERPLEXITY]:.6g}" in out
    assert f"store get {config.run_uri}/model/ MODEL --endpoint {storage_settings.endpoint}\n" in out
    assert "pretrained=MODEL,dtype=float32,softmax_dtype=float32,add_bos_token=False,max_length=" in out
    assert len(documents(tmp_path / "task")) == count
    for folder, metrics in ((tmp_path / "export-Merged", result.tuned), (base, result.baseline)):
        texts = Texts(load_tokenizer(folder))
        found = figures(tmp_path / "task", AutoModelForCausalLM.from_pretrained(folder), texts.encode)
        expected = {"loss": metrics[Metric.LOSS], "perplexity": metrics[Metric.PERPLEXITY]}
        assert found == pytest.approx(expected, rel=1e-5)


def test_rows_that_cannot_be_written_are_refused_or_left_out_and_counted(
    store, storage_settings, bucket, tmp_path
) -> None:
    base = save_tiny_llama(tmp_path / "llama")
    texts = [{"text": f"{n} fox" + " 狐" * (n % 5)} for n in range(40)]
    config = prepared_config(
        store, storage_settings, tmp_path, bucket=bucket, base=base, records=texts, data={"maxLength": 10}
    )
    record_run(store, config, config.prepared)
    store.upload_folder(base, config.model_uri)
    store.put(f"{config.run_uri}/evaluation.json", evaluation(config.run_uri))

    rows, task = config.prepared.counts.test, tmp_path / "task"
    with pytest.raises(
        BadDataError, match=rf"of {rows} rows .* cannot be written as text:\n- re-encoding the text"
    ) as error:
        write_task(store, config.run_uri, task, tmp_path)
    assert error.value.advice.startswith("add --skip to leave them out")
    assert not task.exists()

    written = write_task(store, config.run_uri, task, tmp_path, skip=True)
    left_out = rows - len({doc["row"] for doc in documents(task)})
    assert 0 < left_out == sum(written.left_out.values()) < rows == written.rows
    assert (
        f"# {left_out} of {rows} rows are left out: the results will differ from the report."
        in written.path.read_text()
    )


@pytest.mark.parametrize(
    ("text", "loss", "message", "advice"),
    [
        ("the fox", False, ": the test split must have a token that carries loss", "choose a run whose spec.data"),
        ("狐", True, "^all 2 rows of the test split cannot be written as text", "choose a run with a larger"),
    ],
    ids=["no loss", "half a character"],
)
def test_a_split_without_answers_is_refused_with_a_fix(
    store, storage_settings, bucket, tmp_path, text, loss, message, advice
) -> None:
    base = save_tiny_llama(tmp_path / "llama")
    config = prepared_config(
        store, storage_settings, tmp_path, bucket=bucket, base=base, records=[{"text": "the fox"}] * 40
    )
    record_run(store, config, config.prepared)
    store.upload_folder(base, config.model_uri)
    store.put(f"{config.run_uri}/evaluation.json", evaluation(config.run_uri))
    ids = [1, *Texts(load_tokenizer(base)).encode(text)[:-1]]  # without the end of the character
    uri = config.prepared.dataset_uri
    writer = ShardWriter(store, uri, "test", vocabulary=max(ids) + 1)
    flags = np.array([True, *[loss] * (len(ids) - 1)])
    writer.add(np.array([len(ids)] * 2), np.array(ids * 2), loss=np.tile(flags, 2))
    writer.flush()
    info = read_dataset_info(store, uri)
    info = info.model_copy(update={"shards": {**info.shards, "test": tuple(writer.shards)}})
    store.put(f"{uri}/{DATASET_FILE}", info.model_dump_json().encode())

    for skip in (False, True):
        with pytest.raises(BadDataError, match=message) as error:
            write_task(store, config.run_uri, tmp_path / "task", tmp_path / str(skip), skip=skip)
        assert error.value.advice.startswith(advice)
    assert not (tmp_path / "task").exists()


PREPARED = {
    "task": "CausalLM",
    "format": "Chat",
    "dtype": "Float32",
    "packing": "Padded",
    "zero_stage": 2,
    "dataset_uri": "s3://x/d",
    "counts": {"train": 1, "validation": 0, "test": 1},
}


@pytest.mark.parametrize(
    ("prepared", "evaluated", "error", "message"),
    [
        (
            {"task": "SequenceClassification"},
            {},
            BadConfigError,
            ": task must be CausalLM for lm-eval, not SequenceClassification",
        ),
        (
            {"vocabulary": {"added": 1, "original_digest": "d"}},
            {},
            BadConfigError,
            ": spec.model.vocabulary must not be set for lm-eval",
        ),
        ({}, {"tuned": None}, BadConfigError, "must have a test split"),
        ({}, {"model": {"uri": "ADAPTER"}}, BadConfigError, ": spec.output.formats must contain Merged"),
        ({}, None, ObjectMissingError, "has no result"),
    ],
    ids=["classifier", "vocabulary", "no test split", "adapter", "no evaluation"],
)
def test_a_run_that_lm_eval_cannot_evaluate_is_refused(
    store, bucket, tmp_path: Path, prepared, evaluated, error, message
) -> None:
    run = stored(store, f"s3://{bucket}/out", 1, documents={"run.json": record(prepared=PREPARED | prepared)})
    store.delete(f"{run}/evaluation.json")
    if evaluated is not None:
        store.put(f"{run}/evaluation.json", evaluation(run, **evaluated))
    with pytest.raises(error, match=message):
        write_task(store, run, tmp_path / "task", tmp_path)
    assert not (tmp_path / "task").exists()
