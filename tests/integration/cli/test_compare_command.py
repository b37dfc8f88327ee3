"""`finetune compare` as a process, with runs in a real store."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from compared_runs import UID, evaluation, record, stored, training
from factories import make_job
from finetune_api.run_layout import RunLayout
from finetune_api.trainer_config import JobRef, StorageSettings
from finetune_trainer.evaluate.earlier_runs import compare_with_earlier_runs
from finetune_trainer.store import ObjectStore
from train_configs import train_config

HOSTILE = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\u202e$\\frac{1}{2}$\nnext"


@pytest.fixture
def output(bucket: str) -> str:
    return f"s3://{bucket}/out"


@pytest.fixture
def compare(storage_settings: StorageSettings, tmp_path: Path, commands: CommandLine):
    """Run the command; returns status, output and errors. `fresh`: in a new interpreter."""

    def go(*arguments: str, fresh: bool = False) -> tuple[int, str, str]:
        run = commands.fresh if fresh else commands.run
        done = run("compare", *arguments, "--endpoint", str(storage_settings.endpoint), cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return go


def document(run: int, **prepared: Any) -> dict[str, Any]:
    return {"run.json": record(run, prepared=prepared)}


def test_two_runs_are_compared(store: ObjectStore, output: str, compare, tmp_path: Path) -> None:
    first = stored(store, output, 1, spec={"training": {"epochs": 3}, "workers": {"nodes": 2}})
    second = stored(
        store,
        output,
        2,
        spec={"training": {"epochs": 5}, "method": {"lora": {"rank": 8}, "full": None}, "workers": {"nodes": 2}},
        documents={"evaluation.json": evaluation(0.95), "training.json": training(60, trained_parameters=294_912)},
    )
    status, text, err = compare(first, f"{second}/", "--html", "page.html", fresh=True)
    lines = text.splitlines()
    assert (status, err) == (0, "")
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("A  s3://")
    table = {re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip())[1:] for line in lines}
    assert table["accuracy"] == ["90.0 %", "95.0 %"]
    assert table["interval"] == ["88.0 to 92.0 %", "93.0 to 97.0 %"]
    assert table["trained"] == ["22.7 M", "295 k"]
    assert table["train rows"] == ["1,620", "1,620"]
    assert table["steps"] == ["40", "60"]
    spec = text[text.index("spec:") : text.index("training loss, by step")]
    assert "  spec.training.epochs\n    A  3\n    B  5\n" in spec
    assert "    A  -\n    B  8\n" in spec
    assert "workers" not in spec, "equal fields are no change"
    assert re.search(r"^60 +- +0\.75$", text, re.MULTILINE), "the curve of the longer run goes on"
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 4, "training loss, validation loss, accuracy and learning rate"
    assert "<script" not in page

    status, text, _ = compare(first, second, "-o", "json")
    found = json.loads(text)
    assert {change["path"]: change["values"] for change in found["changes"]}["spec.training.epochs"] == {
        "A": "3",
        "B": "5",
    }
    assert found["runs"][1]["metrics"]["Accuracy"] == {"value": 0.95, "low": 0.93, "high": 0.97, "confidence": 0.95}
    assert found["runs"][0]["curves"]["loss"][:2] == [[1, 3.0 / 1.05], [2, 3.0 / 1.1]]


def test_the_runs_of_a_job_have_numbers_and_costs(store: ObjectStore, output: str, compare, tmp_path: Path) -> None:
    for run in (1, 2):
        stored(store, output, run)
    job = make_job("topics", output={"uri": output}, storage={"endpoint": "http://127.0.0.1:1"})
    job["metadata"]["uid"] = UID
    job["status"] = {
        "run": {"number": 2, "cost": {"podSeconds": 120, "gpuSeconds": 0}},
        "newestRun": 2,
        "history": [{"number": 1, "result": "Succeeded", "cost": {"podSeconds": 7200, "gpuSeconds": 3600}}],
    }
    folder = tmp_path / ".finetune/jobs/default/topics/objects"
    folder.mkdir(parents=True)
    (folder / "FineTuneJob.topics.json").write_text(json.dumps(job))
    status, text, err = compare("topics:1", "topics")
    assert (status, err) == (0, "")
    assert re.search(r"^pod time +2 h 00 min +2 min 00 s$", text, re.MULTILINE)
    assert "spec: no differences" in text
    status, _, err = compare("topics", "topics:3")
    assert (status, "topics has no run 3; its newest run is 2" in err) == (66, True)
    status, _, err = compare("topics", "other:1")
    assert (status, "contains no run of other" in err) == (66, True)


@pytest.mark.parametrize("number", [1, 9])
def test_the_number_of_runs_is_limited(number: int, output: str, compare) -> None:
    status, _, err = compare(*[f"{output}/runs/r0001-x"] * number)
    assert (status, f"the number of runs must be 2 to 8, not {number}" in err) == (2, True)


def test_eight_runs_fit_80_columns(store: ObjectStore, output: str, compare, tmp_path: Path) -> None:
    runs = [stored(store, output, run, spec={"training": {"epochs": run}}) for run in range(1, 9)]
    status, text, _ = compare(*runs, "--html", "page.html")
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"\n{label}  s3://" in f"\n{text}" for label in "ABCDEFGH")
    assert "stroke-dasharray" in (tmp_path / "page.html").read_text(), "the fifth line is dashed"


def test_runs_of_different_tasks_share_only_some_metrics(store: ObjectStore, output: str, compare) -> None:
    first = stored(store, output, 1)
    perplexity = {"version": 1, "tuned": {"metrics": {"Loss": 1.5, "Perplexity": 4.5}, "intervals": {}, "examples": 5}}
    second = stored(store, output, 2, documents={**document(2, task="CausalLM"), "evaluation.json": perplexity})
    status, text, _ = compare(first, second)
    assert status == 0
    assert "The runs have different tasks (A SequenceClassification, B CausalLM)" in " ".join(text.split())
    assert re.search(r"^loss +0\.4 +1\.5$", text, re.MULTILINE)
    assert "erplexity" not in text
    assert "ccuracy  " not in text


def test_a_learning_rate_that_a_run_has_chosen_is_compared(store: ObjectStore, output: str, compare) -> None:
    chosen = {**record(1, training={"learningRate": None}), "learning_rate": 2.1e-4}
    first = stored(store, output, 1, documents={"run.json": chosen})
    second = stored(store, output, 2, spec={"training": {"learningRate": 5e-4}})
    status, text, _ = compare(first, second)
    assert status == 0
    assert "  spec.training.learningRate\n    A  0.00021\n    B  0.0005\n" in text
    same = stored(store, output, 3, spec={"training": {"learningRate": 2.1e-4}})
    assert "spec: no differences" in compare(first, same)[1]


def test_what_is_missing_is_named(store: ObjectStore, output: str, compare) -> None:
    nothing = {"evaluation.json": None, "training.json": None}
    first = stored(store, output, 1, documents=nothing | document(1, dataset_digest="d2"))
    second = stored(store, output, 2, documents={"evaluation.json": {"version": 1}})
    newer = stored(store, output, 3, documents={"run.json": {**record(3), "spec": {"newerField": 1}}})
    status, text, _ = compare(first, second, newer)
    notes = " ".join(text.split())
    assert status == 0
    for note in (
        "A has no evaluation yet.",
        "A has no training log yet, so it has no curves.",
        "B has no test split, so it has no metrics.",
        "The runs have different datasets, so their metrics are not those of the same test examples.",
        "The spec of C was written by another version and is not compared.",
        "The cost of C is unknown",
    ):
        assert note in notes
    status, _, err = compare(second, RunLayout.of(output, 9, UID).uri)
    assert (status, "there is no run at" in err) == (78, True)


def test_texts_from_storage_reach_neither_the_terminal_nor_the_page(
    store: ObjectStore, output: str, compare, tmp_path: Path
) -> None:
    log = [
        {"step": 1, "loss": 2.0, HOSTILE: 1.0},
        {"step": HOSTILE, "loss": 1.0},
        {"step": 10**400, "loss": 1.0},
        {"step": 2, "loss": 10**400},
        {"step": 3, "loss": True},
    ]
    evil = {
        "run.json": {
            **record(1, prepared={"task": HOSTILE, "dataset_digest": HOSTILE * 10_000, "counts": {HOSTILE: 1}}),
            "job": {"namespace": HOSTILE, "name": "<b>" * 10_000, "uid": HOSTILE},
        },
        "evaluation.json": {"tuned": {"metrics": {HOSTILE: 1.0, "Loss": 1e308}, "intervals": {}}},
        "training.json": json.dumps({"log": log, "steps": 3}).encode() + b" " * 1000,
    }
    evil["run.json"]["spec"]["run_nonce"] = None
    evil["run.json"]["spec"]["evaluation"] = {"prompts": [HOSTILE]}
    first, second = stored(store, output, 1, documents=evil), stored(store, output, 2)
    for arguments in (["--html", "page.html"], ["-o", "json"]):
        status, text, err = compare(first, second, *arguments)
        assert (status, err) == (0, "")
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert len(text) < 40_000
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<b><b>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("run.json", b"{", "run.json cannot be compared: the document: Invalid JSON"),
        ("run.json", b"[]", "run.json cannot be compared: the document: Input should be an object"),
        ("training.json", b'{"log": {}}', "training.json cannot be compared: log: Input should be a valid array"),
        ("evaluation.json", b'{"tuned": {"metrics": {"Loss": "x"}}}', "evaluation.json cannot be compared: tuned."),
        ("run.json", b" " * ((8 << 20) + 1), "must have at most 8,388,608"),
    ],
)
def test_a_document_that_cannot_be_read_is_an_error(
    name: str, content: bytes, words: str, store: ObjectStore, output: str, compare
) -> None:
    first, second = stored(store, output, 1), stored(store, output, 2, documents={name: content})
    status, text, err = compare(first, second)
    assert (status, text) == (70, "")
    assert words in err


def test_a_page_that_cannot_be_written_is_an_error(store: ObjectStore, output: str, compare) -> None:
    first, second = stored(store, output, 1), stored(store, output, 2)
    status, text, err = compare(first, second, "--html", "missing/page.html")
    assert (status, text, "missing/page.html cannot be written: No such file" in err) == (2, "", True)


def test_the_report_of_a_run_compares_it_with_the_five_before_it_and_names_those_that_cannot_be_read(
    store: ObjectStore, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    for run in (1, 2, 3, 4, 5, 6, 7):
        stored(store, output, run)
    config = train_config(output={"uri": output}).model_copy(
        update={"run": 7, "job": JobRef(namespace="team", name="topics", uid=UID)}
    )
    found = compare_with_earlier_runs(config, store)
    assert found is not None
    assert [run.run for run in found.runs] == [7, 6, 5, 4, 3, 2]
    assert found.notes == ()
    record_of = [RunLayout.of(output, run, UID).record for run in (5, 6)]
    for uri in record_of:
        store.put(uri, b"{not json")
    found = compare_with_earlier_runs(config, store)
    assert found is not None
    assert [run.run for run in found.runs] == [7, 4, 3, 2]
    assert [note.partition(" is left out: ")[0] for note in found.notes] == ["Run 6", "Run 5"]
    assert "the report does not compare run 6: " in caplog.text
    assert compare_with_earlier_runs(config.model_copy(update={"run": 1}), store) is None
