"""Job files: violations and differences to kubectl are reported with file and line."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from factories import make_job
from finetune_cli.job_file import JobFileError, JobFileMissingError, read_job_file
from finetune_operator.yaml_text import dump_all, read_by_kubectl

GOOD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: topics
spec:
  model: {uri: s3://bucket/model}
  data:
    train:
      - uri: s3://bucket/a.jsonl
      - {uri: s3://bucket/b.jsonl}
  training:
    learningRate: 2e-4
    epochs: 3
  output: {uri: s3://bucket/out}
  runNonce: 2026-01-01
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaints(folder: Path, text: str | bytes, *, local: bool = True) -> list[str]:
    path = written(folder, text)
    with pytest.raises(JobFileError) as caught:
        read_job_file(path).check(local=local)
    return str(caught.value).replace(f"{path}", "job.yaml").splitlines()


def test_numbers_and_dates_are_read_like_kubectl_does(tmp_path: Path) -> None:
    job = read_job_file(written(tmp_path, GOOD)).check(local=True)
    assert job.spec.training.learning_rate == 2e-4
    assert job.spec.run_nonce == "2026-01-01"


def test_dumped_yaml_is_read_back_unchanged(tmp_path: Path) -> None:
    manifest = make_job(training={"learningRate": 2e-05}, runNonce="2026-01-01")
    assert read_job_file(written(tmp_path, dump_all([manifest]))).manifest == manifest


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("epochs: 3", 'epochs: "3"', "job.yaml:13: spec.training.epochs must be an integer"),
        (
            "learningRate: 2e-4",
            "learningRat: 2e-4",
            "job.yaml:12: spec.training.learningRat: unknown field; did you mean",
        ),
        ("s3://bucket/b.jsonl", "ftp://b", "job.yaml:10: spec.data.train[1].uri must be"),
        ("- uri: s3://bucket/a.jsonl", "- uri: gs://a", "job.yaml:9: spec.data.train[0].uri must be"),
        (
            "    epochs: 3",
            "    epochs: 3\n    maxSteps: 9",
            "job.yaml:11: spec.training must not have both epochs and maxSteps",
        ),
        ("name: topics", "nam: topics", "job.yaml:3: metadata.name must be set"),
        ("kind: FineTuneJob", "kind: FineTuneJop", "job.yaml:2: kind must be FineTuneJob"),
        ("kind: FineTuneJob\n", "", "job.yaml:1: kind must be set; write kind: FineTuneJob"),
        ("apiVersion: finetune.dev/v1alpha1\n", "", "job.yaml:1: apiVersion must be set; write apiVersion: finet"),
    ],
)
def test_a_violation_has_the_line_of_its_field(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    found = complaints(tmp_path, GOOD.replace(old, new, 1))
    assert any(line.startswith(complaint) for line in found), found


def test_all_violations_are_reported_at_once_in_order_of_lines(tmp_path: Path) -> None:
    text = GOOD.replace("2e-4", "fast").replace("epochs: 3", "epochs: 0").replace("s3://bucket/model", "model")
    assert [line.split(" ")[0] for line in complaints(tmp_path, text)] == [
        "job.yaml:6:",
        "job.yaml:12:",
        "job.yaml:13:",
    ]


def test_a_file_address_is_rejected_only_for_a_cluster(tmp_path: Path) -> None:
    text = GOOD.replace("s3://bucket/model", "file:///models/base")
    assert read_job_file(written(tmp_path, text)).check(local=True)
    assert complaints(tmp_path, text, local=False)[0].startswith(
        "job.yaml:6: spec.model.uri must be an address that every node can reach"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "job.yaml: must contain a FineTuneJob, but is empty"),
        ("# only a comment\n---\n", "job.yaml: must contain a FineTuneJob, but is empty"),
        ("- a\n- b\n", "job.yaml:1: must be a FineTuneJob, not a list"),
        ("just words\n", "job.yaml:1: must be a FineTuneJob, not text"),
        ("a: 1\n\tb: 2\n", "job.yaml:2: YAML does not allow tabs for indentation; use spaces"),
        ("a:\n\t- b\n", "job.yaml:2: YAML does not allow tabs for indentation; use spaces"),
        ("a: 1\nb: 2\na: 3\n", 'job.yaml:3: found duplicate key "a"'),
        ("a: [1, 2\nb: 3\n", "job.yaml:2: "),
        ("a: .nan\n", "job.yaml: must not contain .nan, .inf or a block that contains itself"),
        ("a: &x\n  b: *x\n", "job.yaml: must not contain .nan, .inf or a block that contains itself"),
        ("a: !!python/name:os.system x\n", "job.yaml:1: could not determine a constructor for the tag"),
        (b"\xff\xfe\x00", "job.yaml: must be UTF-8 text, but byte 0 is invalid; is it a YAML file?"),
        (
            GOOD + "---\n" + GOOD,
            "job.yaml: exactly one of the 2 documents must be a FineTuneJob, but 2 are (lines 1, 17)",
        ),
        (
            "kind: A\n---\nkind: B\n",
            "job.yaml: exactly one of the 2 documents must be a FineTuneJob, but none is",
        ),
    ],
)
def test_a_file_that_is_not_a_job_is_described(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    assert complaints(tmp_path, text)[0].startswith(complaint)


def test_a_job_among_other_objects_is_found_with_its_lines(tmp_path: Path) -> None:
    text = "kind: ConfigMap\n---\n" + GOOD.replace("epochs: 3", "epochs: 0")
    assert complaints(tmp_path, text)[0].startswith("job.yaml:15: spec.training.epochs must be at least 1")


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_missing_file_and_an_invalid_file_are_different_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(JobFileMissingError):
        read_job_file(tmp_path / name)


def test_the_samples_are_valid_with_both_readers() -> None:
    samples = sorted((Path(__file__).parents[3] / "manifests/samples").glob("*.yaml"))
    assert samples
    for path in samples:
        file = read_job_file(path)
        file.check(local=False)
        assert file.manifest == YAML(typ="safe", pure=True).load(path)


def test_an_unpaired_surrogate_is_reported_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("  runNonce: 2026-01-01", '  evaluation:\n    prompts: ["a\\ud83d"]')
    assert complaints(tmp_path, text) == [
        "job.yaml:16: spec.evaluation.prompts[0] must be valid Unicode: it contains an unpaired surrogate; "
        "write the character itself"
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("runNonce: on", "runNonce must be quoted, or be true or false: kubectl reads on as true"),
        ("suspend: yes", "suspend must be quoted, or be true or false: kubectl reads yes as true"),
        ("suspend: N", "suspend must be quoted, or be true or false: kubectl reads N as false"),
        (
            "workers: {nodeSelector: {gpu: Off}}",
            "workers.nodeSelector.gpu must be quoted, or be true or false: kubectl reads Off as false",
        ),
        (
            "workers: {nodeSelector: {on: gpu}}",
            "workers.nodeSelector.on must be a quoted key: kubectl reads on as true",
        ),
        (
            "workers: {nodeSelector: {010: gpu}}",
            "workers.nodeSelector.010 must be a quoted key: kubectl reads 010 as 8",
        ),
        (
            "workers: {nodeSelector: {1.0: gpu}}",
            "workers.nodeSelector.1.0 must be a quoted key: kubectl reads 1.0 as 1",
        ),
        (
            "workers: {nodes: 010}",
            "workers.nodes must not start with 0, or must be quoted if it is text: kubectl reads 010 as 8",
        ),
        (
            "workers: {nodes: +0_10}",
            "workers.nodes must not start with 0, or must be quoted if it is text: kubectl reads +0_10 as 8",
        ),
        (
            "workers: {nodes: 0X1F}",
            "workers.nodes must be 31, or must be quoted if it is text: kubectl reads 0X1F as 31",
        ),
        (
            "evaluation: {prompts: [a, [y]]}",
            "evaluation.prompts[1][0] must be quoted, or be true or false: kubectl reads y as true",
        ),
        *(
            (
                f"workers: {{env: [{{name: A, value: {secret}}}]}}",
                "workers.env[0].value must be quoted: kubectl does not read it as text",
            )
            for secret in ("off", "0077", "0X77")
        ),
    ],
)  # fmt: skip
def test_scalars_that_kubectl_reads_differently_are_rejected_with_their_line(
    tmp_path: Path, line: str, complaint: str
) -> None:
    found = complaints(tmp_path, f"{GOOD.replace('  runNonce: 2026-01-01', f'  {line}')}")
    assert f"job.yaml:15: spec.{complaint}" in found
    assert sum(complaint.partition(" ")[0] in one for one in found) == 1, "our own interpretation is not validated"


@pytest.mark.parametrize(
    "line",
    [
        'runNonce: "on"',
        "runNonce: 'no'",
        "runNonce: !!str off",
        "runNonce: >-\n    yes",
        'workers: {nodeSelector: {"on": "010", "1.0": yEs}}',
        "workers: {nodes: 0x2, env: [{name: A, value: 1:30}, {name: B, value: 2026-01-01}]}",
        "workers: {nodes: 0o2}",
        "workers: {nodes: 2.0}",
        "suspend: False",
        "suspend: ~",
        "suspend:",
    ],
)
def test_quoted_block_and_tagged_scalars_are_accepted(tmp_path: Path, line: str) -> None:
    read_job_file(written(tmp_path, GOOD.replace("  runNonce: 2026-01-01", f"  {line}"))).check(local=True)


def test_aliased_nodes_are_reported_once_in_bounded_time(tmp_path: Path) -> None:
    levels = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 5))
    found = complaints(tmp_path, f"{GOOD}x:\n  l0: &l0 [yes]\n{levels}")
    assert [one for one in found if "kubectl" in one] == [
        "job.yaml:17: x.l0[0] must be quoted, or be true or false: kubectl reads yes as true"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, True) for word in ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE")),
        *((word, False) for word in ("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE")),
        *((word, None) for word in ("", "~", "null", "Null", "NULL")),
        *((word, word) for word in ("yEs", "tRue", "nULL", "0b2", "0o8", "0x", "1:30", "0x1p3", "_1", "+", ".")),
        *((word, word) for word in (".5_", "._5", "0xFFFFFFFFFFFFFFFFF", "1e999", ".inf", "2001-01-01", "-")),
        *((word, 8) for word in ("010", "+010", "0_10", "0o10", "0O10", "08", "0_8", "0x8", "0X8", "8_", "8.")),
        *((word, -3) for word in ("-3", "-0b11", "0b-11", "-0B11", "-03", "-0x3")),
        ("1_000.5", 1000.5), (".1e1", 1), (".1_0", 0.1), ("1E3", 1000), ("2e-4", 2e-4), ("010.5", 10.5),
        ("18446744073709551615", 2**64 - 1), ("18446744073709551616", 2.0**64), ("-9223372036854775809", -(2.0**63)),
    ],
)  # fmt: skip
def test_plain_scalars_are_predicted_as_kubectl_reads_them(text: str, value: object) -> None:
    """Values from the output of `kubectl label --local -f FILE -o json`."""
    found = read_by_kubectl(text)
    assert found == value
    assert isinstance(found, bool) is isinstance(value, bool)


def test_dumped_text_is_also_text_for_kubectl() -> None:
    words = ["y", "yes", "NO", "on", "Off", "010", "0X1F", ".1e1", "0O10", "0B1", "plain"]
    lines = dump_all([{word: word for word in words}]).splitlines()
    assert lines == [*(f"'{word}': '{word}'" for word in words[:-1]), "plain: plain"]
