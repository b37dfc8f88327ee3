"""The command line in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_cli.local import demo_assets
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_cli.local.storage import store_folder

ROOT = Path(__file__).parents[3]


def finetune(*arguments: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer")])
    return subprocess.run(
        [sys.executable, "-m", "finetune_cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "80", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_files_and_folders_are_uploaded_and_downloaded(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "inner" / "b.txt").write_text("second")
    done = finetune("store", "put", folder, "s3://bucket/data/", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["s3://bucket/data/a.txt", "s3://bucket/data/inner/b.txt"]
    assert finetune("store", "put", "data/a.txt", "s3://bucket", cwd=tmp_path).stdout == "s3://bucket/a.txt\n"
    assert finetune("store", "ls", cwd=tmp_path).stdout == "s3://bucket/\n"
    rows = finetune("store", "ls", "s3://bucket/data/", cwd=tmp_path).stdout.splitlines()
    assert [row.split()[0::4] for row in rows] == [["5", "s3://bucket/data/a.txt"], ["6", "s3://bucket/data/inner/"]]
    assert finetune("store", "get", "s3://bucket/data/", "copy", cwd=tmp_path).returncode == 0
    assert (tmp_path / "copy" / "inner" / "b.txt").read_text() == "second"
    assert finetune("store", "get", "s3://bucket/a.txt", "-", cwd=tmp_path).stdout == "first"
    (tmp_path / "a.txt").unlink(missing_ok=True)
    assert finetune("store", "get", "s3://bucket/a.txt", cwd=tmp_path).stdout == "a.txt\n"


def test_the_store_can_be_read_while_a_run_owns_the_server(tmp_path: Path) -> None:
    with EmbeddedStore(store_folder(tmp_path / ".finetune")) as server:
        server.create_bucket("busy")
        assert finetune("store", "ls", cwd=tmp_path).stdout == "s3://busy/\n"
        server.check()


def test_the_users_own_s3_needs_an_endpoint_and_its_credentials(tmp_path: Path, store_server: EmbeddedStore) -> None:
    store_server.create_bucket("own")
    (tmp_path / "file").write_text("x")
    own = ("--endpoint", store_server.endpoint)
    done = finetune("store", "put", "file", "s3://own/a", *own, cwd=tmp_path, **store_server.env())
    assert (done.returncode, done.stdout) == (0, "s3://own/a\n")
    denied = finetune(
        *("store", "ls", "s3://own/", *own), cwd=tmp_path, **{**store_server.env(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    )
    assert denied.returncode == 77
    assert "Traceback" not in denied.stderr
    missing = finetune("store", "put", "file", "s3://not-made/a", *own, cwd=tmp_path, **store_server.env())
    assert missing.returncode == 78
    assert "not-made" in missing.stderr
    assert not (tmp_path / ".finetune").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["store", "get", "s3://bucket/nothing", "x"], 78, "s3://bucket/nothing"),
        (["store", "ls", "bucket"], 78, "write s3://bucket/key"),
        (["store", "put", "no-such-file", "s3://bucket/a"], 66, "no-such-file: no such file"),
        (["store", "ls", "--endpoint", "s3.example.com"], 2, "must be a URL such as https://"),
        (["run", "no-such-job.yaml"], 66, "no-such-job.yaml: no such file"),
        (["run", "bad.yaml"], 65, "bad.yaml:1: "),
        (["validate", "bad.yaml", "no-such-job.yaml"], 66, "bad.yaml:1: "),
        (["render", "bad.yaml"], 65, "bad.yaml:1: "),
        (["logs"], 66, "contains no runs"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_a_failed_command_prints_one_message(tmp_path: Path, arguments: list[str], status: int, words: str) -> None:
    (tmp_path / "bad.yaml").write_text("kind: Pod\n")
    done = finetune(*arguments, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_validate_notes_settings_that_work_only_locally_or_only_in_a_cluster(tmp_path: Path) -> None:
    sample = (ROOT / "manifests/samples/quickstart.yaml").read_text()
    here = sample.replace("s3://demo/models/all-MiniLM-L6-v2", "file:///models/base")
    variable = "{name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hub, key: token}}}"
    (tmp_path / "job.yaml").write_text(here.replace("  workers:\n", f"  workers:\n    env: [{variable}]\n"))
    done = finetune("validate", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0
    valid, note, other = done.stdout.splitlines()
    assert valid == "job.yaml: valid"
    assert note.startswith("note: job.yaml:7: spec.model.uri must be an address that every node can reach")
    assert "spec.workers.env[0].valueFrom must be absent in `finetune run`" in other
    assert "set HF_TOKEN in the environment of the command" in other


def test_render_prints_manifests_that_kubectl_can_apply(tmp_path: Path) -> None:
    done = finetune("render", ROOT / "manifests/samples/quickstart.yaml", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("kind: Job\n") == 3


def test_the_real_corpus_has_17_topics_and_735_questions() -> None:
    questions = demo_assets.frequent(demo_assets.read_questions(demo_assets.corpus_folder()))
    assert len({topic for _, topic in questions}) == 17
    assert len(questions) == 735
    assert len(set(questions)) == 735
