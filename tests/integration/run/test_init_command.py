"""`finetune init` as a process, and a run of the job that it writes."""

import json
import re
import subprocess
from pathlib import Path
from typing import Protocol

import pytest
from ruamel.yaml import YAML

import tiny_models
from command_line import CommandLine
from rows import chats, classified, jsonl

EVIL = 'lab\x1b[2J: el\n# "x"'


class Finetune(Protocol):
    """Runs a command in the folder; returns status, output and errors."""

    def __call__(self, *arguments: str) -> tuple[int, str, str]: ...


def checked(done: "subprocess.CompletedProcess[str]") -> tuple[int, str, str]:
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def finetune(folder: Path, commands: CommandLine) -> Finetune:
    return lambda *arguments: checked(commands.run(*arguments, cwd=folder, within=400))


@pytest.fixture
def fresh_finetune(folder: Path, commands: CommandLine) -> Finetune:
    """In a new interpreter."""
    return lambda *arguments: checked(commands.fresh(*arguments, cwd=folder, within=400))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny model and a data file."""
    tiny_models.save_tiny_bert(tmp_path / "bert")
    (tmp_path / "reviews.jsonl").write_bytes(jsonl(classified()))
    return tmp_path


def test_the_first_job_of_a_file_is_valid_and_runs(folder: Path, finetune: Finetune, fresh_finetune: Finetune) -> None:
    status, out, err = fresh_finetune("init", "--data", "reviews.jsonl", "--model", "bert")
    assert (status, err) == (0, "")
    assert out == "job.yaml: Classification, 60 records read; run `finetune run job.yaml`\n"
    text = (folder / "job.yaml").read_text()
    job = YAML(typ="safe").load(text)
    assert job["metadata"]["name"] == "reviews"
    assert job["spec"]["model"]["uri"] == f"file://{folder}/bert"
    assert job["spec"]["data"]["format"] == "Classification"
    assert job["spec"]["data"]["maxLength"] == 32
    assert job["spec"]["training"] == {"epochs": 3, "learningRate": 1e-3, "globalBatchSize": 8}
    for choice in ("format", "maxLength", "learningRate", "globalBatchSize", "full", "validation", "test"):
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{choice}:")]
        before = text.splitlines()[text.splitlines().index(line) - 1]
        assert "#" in line or "#" in before, f"{choice} has a comment"
    status, out, _ = fresh_finetune("validate", "job.yaml")
    assert (status, out.splitlines()[0]) == (0, "job.yaml: valid")
    status, out, err = fresh_finetune("plan", "job.yaml", "-o", "json")
    planned = json.loads(out)
    assert (status, planned["seconds"], planned["trainedParameters"]) == (0, None, planned["parameters"]), err
    status, out, err = fresh_finetune("run", "job.yaml", "--output", "plain")
    assert status == 0, out + err
    status, out, _ = finetune("status", "-o", "json")
    found = json.loads(out)["status"]
    assert found["phase"] == "Succeeded"
    assert found["run"]["progress"]["totalSteps"] == planned["totalSteps"]
    assert found["run"]["resolved"]["zeroStage"] == planned["zeroStage"]
    status, out, err = finetune("plan", "job.yaml")
    lines = [line for line in out.splitlines() if str(folder) not in line]
    assert (status, err, lines[0], max(map(len, lines)) <= 80) == (0, "", "reviews can be trained", True)
    assert f"{planned['totalSteps']} ({planned['stepsPerEpoch']} per epoch of 48 examples)" in out
    assert "measured in r0001-" in out


def test_a_training_that_does_not_fit_is_refused_with_settings_that_fit(folder: Path, finetune: Finetune) -> None:
    status, _, err = finetune("init", "--data", "reviews.jsonl", "--model", "bert")
    assert status == 0, err
    job = YAML(typ="safe").load((folder / "job.yaml").read_text())
    job["spec"]["workers"] = {"resources": {"limits": {"memory": "512Mi"}}}
    with (folder / "job.yaml").open("w") as file:
        YAML().dump(job, file)
    status, out, err = finetune("plan", "job.yaml", "-o", "markdown")
    assert (status, out) == (78, "")
    assert re.search(r"spec\.workers\.resources\.limits\.memory must be at least 1Gi for .*, not 512Mi;", err), err
    assert "raise spec.workers.resources.limits.memory to 1Gi" in err


def test_the_plan_of_a_training_on_gpus_shows_their_memory_and_that_of_the_host(
    folder: Path, finetune: Finetune
) -> None:
    status, _, err = finetune("init", "--data", "reviews.jsonl", "--model", "bert")
    assert status == 0, err
    job = YAML(typ="safe").load((folder / "job.yaml").read_text())
    job["spec"]["workers"] = {"gpusPerNode": 2, "gpuMemory": "16Gi"}
    with (folder / "job.yaml").open("w") as file:
        YAML().dump(job, file)
    status, out, err = finetune("plan", "job.yaml")
    assert (status, err) == (0, ""), err
    words = " ".join(out.split())
    # CUDA and NCCL take most of it for a model of this size.
    assert re.search(
        r"memory 2\.\d GiB to 3\.\d GiB for each GPU, ZeRO stage 2; a GPU has 16Gi; "
        r"estimated, with the errors of [^;]*programs host",
        words,
    ), out
    assert re.search(r"host [67]\.\d GiB of host memory for each worker; without a limit", words), out
    assert "ZeRO stage 2: the lowest that fits the memory of a GPU (2." in words


def test_columns_are_named_and_texts_of_the_file_stay_texts(folder: Path, finetune: Finetune) -> None:
    """Names of files and columns may have any characters."""
    rows = [{"sentence": row["text"], EVIL: row["label"]} for row in classified()]
    name = "my: [data] 'x'.jsonl"
    (folder / name).write_bytes(jsonl(rows))
    columns = ("--column", "text=sentence", "--column", f"label={EVIL}")
    status, _, err = finetune("init", "--data", name, "--model", "bert", *columns, "-o", "other.yaml")
    assert (status, err) == (0, "")
    spec = YAML(typ="safe").load((folder / "other.yaml").read_text())["spec"]
    assert spec["data"]["columns"] == {"text": "sentence", "label": EVIL}
    assert spec["data"]["train"] == [{"uri": f"file://{folder}/{name}"}]
    assert "\x1b" not in (folder / "other.yaml").read_text()


def test_a_chat_model_gets_the_length_of_its_conversations(folder: Path, finetune: Finetune) -> None:
    tiny_models.save_tiny_llama(folder / "llama", tiny_models.CHATML)
    (folder / "chats.jsonl").write_bytes(jsonl(chats(40)))
    status, out, err = finetune("init", "--data", "chats.jsonl", "--model", "llama")
    assert (status, err) == (0, ""), out
    spec = YAML(typ="safe").load((folder / "job.yaml").read_text())["spec"]
    assert spec["data"]["format"] == "Chat"
    assert spec["data"]["maxLength"] % 32 == 0


@pytest.mark.parametrize(
    ("content", "arguments", "expected", "words"),
    [
        (b"", (), 65, "data.jsonl has no records"),
        (b"\n\n", (), 65, "data.jsonl has no records"),
        (b'{"a": 1, "b": 2}\n', (), 65, "the columns (a, b) match no format"),
        (b'{"text": "", "label": ""}\n', (), 65, "none of the first 1 records"),
        (b"PAR1", (), 65, "Parquet"),
        (b'{"text": "x", "label": "y"}\n', ("--column", "txet=a"), 65, "--column txet"),
        (b'{"text": "x", "label": "y"}\n', ("--column", "text"), 2, "--column must be FIELD=COLUMN, not text"),
        (b'{"text": "x", "label": "y"}\n', ("--model", "missing"), 66, "missing"),
        (b'{"text": "x", "label": "y"}\n', ("--data", "missing.jsonl"), 65, "missing.jsonl matches no file"),
        (b'{"text": "x", "label": "y"}\n', ("--data", "http://a.example/x"), 2, "spec.data.train[0].uri must be"),
        (b'{"text": "x", "label": "y"}\n', ("--model", "http://a.example/x"), 2, "spec.model.uri must be"),
        (b'{"text": "x", "label": "y"}\n', ("-o", "data.jsonl"), 2, "data.jsonl exists; name another file with -o"),
        (b'{"text": "x", "label": "y"}\n', ("-o", "no/job.yaml"), 2, "no/job.yaml cannot be written"),
    ],
)
def test_bad_input_is_an_error_that_names_it(
    folder: Path, finetune: Finetune, content: bytes, arguments: tuple[str, ...], expected: int, words: str
) -> None:
    (folder / "data.jsonl").write_bytes(content)
    status, out, err = finetune("init", "--data", "data.jsonl", "--model", "bert", *arguments)
    assert (status, out, words in err) == (expected, "", True), err
    assert not (folder / "job.yaml").exists()
