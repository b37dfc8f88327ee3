"""Preparation in worker processes: the same dataset for any number of them, and failures of workers are reported."""

import gzip
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

import block_plans
import tiny_models
from finetune_trainer.data import build
from finetune_trainer.data.info import DATASET_FILE
from finetune_trainer.data.workers import MIN_BYTES_FOR_WORKERS, process_blocks, worker_count
from finetune_trainer.errors import BadDataError, TrainerError
from process_support import base_environment, is_alive, until
from rows import chats, classified, jsonl

WHOLE = {name: getattr(build, name) for name in ("BLOCK_BYTES", "_LARGEST_BLOCK", "_BUCKET_BYTES")}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks, buckets and batches of a few records, so that small files have several."""
    monkeypatch.setattr(build, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(build, "_LARGEST_BLOCK", 2000)
    monkeypatch.setattr(build, "_BUCKET_BYTES", 3000)


def prepared_files(place, model, data, monkeypatch, workers) -> tuple[str, str]:
    """dataset.json, which contains the digests of the shards, and its digest."""
    monkeypatch.setattr(build, "worker_count", lambda _: workers)
    prepared = place.prepare(model, data)
    assert not prepared.reused
    uri = f"{prepared.dataset_uri}/{DATASET_FILE}"
    content = place.store.get(uri).decode()
    place.store.delete(uri)
    return content, prepared.dataset_digest


@pytest.mark.parametrize("kind", ["labels", "chats"])
def test_digest_rows_and_shards_are_the_same_with_any_number_of_processes(place, small_blocks, monkeypatch, kind):
    folder = place.folder / "model"
    if kind == "labels":
        model = tiny_models.save_tiny_bert(folder)
        rows = classified(300)
        csv = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows[100:200])
        files = {"a.jsonl": jsonl(rows[:100]), "b.csv": csv.encode(), "c.jsonl.gz": gzip.compress(jsonl(rows[200:]))}
    else:
        model = tiny_models.save_tiny_llama(folder, tiny_models.GEMMA)
        system = [{"role": "system", "content": "Be brief."}]
        files = {"a.jsonl": jsonl([{"messages": system + row["messages"], "tools": [{"n": 1}]} for row in chats(150)])}
    uris = [{"uri": place.put(name, content)} for name, content in files.items()]
    data = {"train": uris, "validation": {"fraction": 0.2}, "test": {"fraction": 0.1}}
    found = {prepared_files(place, model, data, monkeypatch, workers) for workers in (0, 2, 8)}
    assert len(found) == 1
    for name, value in WHOLE.items():
        monkeypatch.setattr(build, name, value)
    in_one_block = prepared_files(place, model, data, monkeypatch, 0)
    assert found == {in_one_block}
    if kind == "chats":
        assert "150 system messages were merged into the first user message" in in_one_block[0]
        assert "does not use: tools (150 records)" in in_one_block[0]


def test_the_first_bad_records_are_listed_for_any_number_of_processes(place, small_blocks, monkeypatch):
    model = tiny_models.save_tiny_bert(place.folder / "model")
    lines = jsonl(classified(200)).splitlines()
    for number in range(20, 200, 12):
        lines[number] = b"oops"
    uri = place.put("a.jsonl", b"\n".join(lines))
    errors = []
    for workers in (0, 2):
        monkeypatch.setattr(build, "worker_count", lambda _, count=workers: count)
        with pytest.raises(BadDataError) as caught:
            place.prepare(model, {"train": [{"uri": uri}], "format": "Classification"})
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert [f"{uri} line {number + 1}:" in errors[0] for number in (20, 128, 140)] == [True, True, False]


def test_small_files_start_no_workers():
    assert worker_count(MIN_BYTES_FOR_WORKERS - 1) == 0
    assert worker_count(1 << 40) in {0, *range(2, len(os.sched_getaffinity(0)) + 1)}


def test_an_error_in_a_worker_is_raised_when_its_result_is_due(tmp_path):
    results = process_blocks(
        block_plans.plan_of(tmp_path, block_plans.divide_by_zero), block_plans.blocks_of(tmp_path), 2
    )
    with pytest.raises(ZeroDivisionError) as caught:
        list(results)
    assert "in divide_by_zero" in str(caught.value.__cause__)  # the traceback of the worker
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_an_error_and_the_others_end(tmp_path):
    results = process_blocks(block_plans.plan_of(tmp_path), block_plans.blocks_of(tmp_path), 2)
    next(results)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(TrainerError, match="a worker process of the prepare stage ended unexpectedly"):
        list(results)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    command = [sys.executable, block_plans.__file__, str(tmp_path)]
    with subprocess.Popen(command, env=base_environment(), stdout=subprocess.PIPE, text=True) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(number)
        process.wait(30)
    until(lambda: not any(map(is_alive, workers)), within=10, what="the workers have exited")
