"""Every block, command, link and field name of the docs is one that exists.

tests/chart and tests/kubernetes check the options of helm and kubectl with the real programs.
"""

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.exceptions import TyperException
from typer.main import get_command

import chart_values
from doc_pages import (
    DECISIONS,
    GUIDES,
    SHELLS,
    Block,
    Command,
    anchors,
    blocks,
    commands,
    commands_of,
    inline,
    links,
)
from factories import make_job, merged
from finetune_api.constants import API_VERSION
from finetune_api.crd import crd
from finetune_api.v1alpha1 import Spec
from finetune_api.validation import parse_job
from finetune_cli.__main__ import app
from finetune_operator.__main__ import _parser as operator_parser
from process_support import ROOT

UNCHECKED = frozenset({"buildah", "done", "export", "for", "lm_eval", "pip", "wandb"})
"""Programs and words of shells whose arguments no test checks."""

CHECKED = frozenset({"finetune", "helm", "kubectl", "make", "python"})

PLACEHOLDER_FILES = frozenset({"job.yaml", "-"})

FILE_OPTIONS = ("-f", "--filename", "-k", "--kustomize", "--patch-file", "--values")

FLUX_KEYS = frozenset({"current", "failed", "inProgress"})
"""Keys of `healthCheckExprs` of Flux."""

FILE_ENDINGS = frozenset({"gz", "html", "json", "jsonl", "md", "py", "safetensors", "txt", "yaml"})

OTHERS = frozenset({"storage.buckets.get"})
"""Names that look like fields: a permission of Google Cloud."""

S3_ACTIONS = {
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "head_bucket": "s3:ListBucket",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "put_object": "s3:PutObject",
}
"""Method of boto3's client -> permission in a policy of AWS."""


def load(block: Block) -> Any:
    """Parse YAML as kubectl does; a key that occurs twice is an error."""
    return YAML(typ="safe", pure=True).load(block.text)


def base_job() -> dict[str, Any]:
    """A valid job that parts of a spec are merged into. Its batch can be divided by 64 processes."""
    return make_job("page", training={"epochs": 1, "learningRate": 1e-4, "globalBatchSize": 64})


SPEC_FIELDS = frozenset(str(field.alias or name) for name, field in Spec.model_fields.items())
VALUES = chart_values.ChartValues().model_dump(mode="json", by_alias=True)


# ---- manifests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_valid_job_or_part_of_one_or_values_of_the_chart_or_another_manifest(block: Block) -> None:
    content = load(block)
    keys = set(content)
    if content.get("apiVersion") == API_VERSION:
        parse_job(content)
    elif "apiVersion" in content:
        assert {"kind", "metadata"} <= keys
    elif keys == {"spec"}:
        parse_job(merged(base_job(), content))
    elif keys <= SPEC_FIELDS - set(VALUES):
        parse_job(merged(base_job(), {"spec": content}))
    elif keys <= set(VALUES):
        chart_values.ChartValues.model_validate(content, by_alias=True)
    else:
        assert keys <= FLUX_KEYS


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_valid(block: Block) -> None:
    json.loads(block.text)


def test_blocks_have_a_language_that_a_test_checks() -> None:
    """A block without a language is a listing, as of the source tree."""
    known = {*SHELLS, "yaml", "json", ""}
    found = {match for page in GUIDES for match in re.findall(r"^ *```(\w+)", page.read_text(), re.MULTILINE)}
    assert found <= known


def test_the_policy_of_a_bucket_allows_what_the_client_requests() -> None:
    client = (ROOT / "trainer/finetune_trainer/store/client.py").read_text()
    requested = {S3_ACTIONS[name] for name in re.findall(r"_client\.([a-z]+_[a-z_0-9]+)\(", client)}
    (policy,) = [json.loads(block.text) for block in blocks("json") if "Statement" in block.text]
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert allowed == requested | {"s3:AbortMultipartUpload"}


# ---- commands --------------------------------------------------------------------------------------------------------


def finetune_command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that these words begin with, and its arguments. Raises KeyError if it does not exist."""
    command: Any = get_command(app)
    rest = list(words)
    while rest and (inner := getattr(command, "commands", None)):
        command = inner[rest.pop(0)]
    return command, rest


def parse_finetune(words: list[str]) -> None:
    """Parse a command line as `finetune` does, without running it. Raises an error of the command line."""
    command, rest = finetune_command(words)
    command.make_context(command.name, rest)


@pytest.mark.parametrize("command", commands("finetune"), ids=str)
def test_finetune_accepts_the_command(command: Command) -> None:
    parse_finetune(list(command.words[1:]))


@pytest.mark.parametrize("words", ["status a b", "promote a --wrong", "store wrong", "logs a --stage wrong"])
def test_a_wrong_command_of_finetune_is_found(words: str) -> None:
    with pytest.raises((KeyError, TyperException), match=r"wrong|unexpected"):
        parse_finetune(words.split())


def sentences() -> Iterator[tuple[Path, str]]:
    yield from ((page, text) for page in GUIDES for text in inline(page))


def test_commands_within_sentences_exist() -> None:
    """Their arguments may be missing, as in `finetune promote --force`."""
    wrong = []
    for page, text in sentences():
        words = shlex.split(text) if text.startswith(("finetune ", "make ")) else []
        if words[:1] == ["make"] and words[1] not in make_targets():
            wrong.append(f"{page.name}: {text}")
        if words[:1] == ["finetune"]:
            command, rest = finetune_command(words[1:])
            known = {name for parameter in command.params for name in parameter.opts}
            wrong += [f"{page.name}: {word}" for word in rest if word.startswith("-") and word not in known]
    assert wrong == []


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("command", commands("make"), ids=str)
def test_make_has_the_target(command: Command) -> None:
    (target,) = [word for word in command.words[1:] if "=" not in word]
    assert target in make_targets()


@pytest.mark.parametrize("command", commands("python"), ids=str)
def test_the_operator_accepts_the_command(command: Command) -> None:
    assert command.words[:3] == ("python", "-m", "finetune_operator")
    operator_parser().parse_args(command.words[3:])


def test_every_program_is_checked_by_a_test() -> None:
    assert {command.program for command in commands()} <= CHECKED | UNCHECKED


@pytest.mark.parametrize("command", commands("kubectl", "helm"), ids=str)
def test_files_of_commands_exist(command: Command) -> None:
    named = command.values_of(*FILE_OPTIONS)
    named += [word for word in command.words if word.startswith(("charts/", "manifests/", "docs/"))]
    assert {name for name in named if not (ROOT / name).exists()} <= PLACEHOLDER_FILES


@pytest.mark.parametrize("command", [one for one in commands("kubectl") if "patch" in one.words], ids=str)
def test_a_patch_of_a_job_is_valid(command: Command) -> None:
    for patch in command.values_of("-p", "--patch"):
        assert command.values_of("--type") == ["merge"]
        parse_job(merged(base_job(), json.loads(patch)))


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("console", "$ a -b  # comment\noutput\n$ c\n", [["a", "-b"], ["c"]]),
        ("console", "$ a \\\n    --b c | d\n", [["a", "--b", "c"], ["d"]]),
        ("console", "$ a |\n    b -f -\n", [["a"], ["b", "-f", "-"]]),
        ("bash", "X=1 a && b\n", [["a"], ["b"]]),
        ("bash", "x=$(a -o '{.b}')\nc \"$x\"\n", [["a", "-o", "{.b}"], ["c", "$x"]]),
    ],
)
def test_commands_are_found_in_blocks(language: str, text: str, expected: list[list[str]]) -> None:
    assert [list(one.words) for one in commands_of(Block(ROOT / "README.md", language, text, 1))] == expected


def test_the_three_ways_to_use_it_in_a_cluster_are_short() -> None:
    """Helm, kubectl apply of an installation, and GitOps."""
    section = (ROOT / "README.md").read_text().partition("## In a cluster")[2].partition("\n## ")[0]
    ways = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    assert [any(word in way for way in ways) for word in ("helm install", "install.yaml", "apply -k")] == [True] * 3
    assert all(len(way.splitlines()) <= 20 for way in ways)


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "CHANGELOG.md", *DECISIONS], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = [
        f"{path}#{anchor}"
        for path, anchor in links(page)
        if not path.exists() or (anchor and anchor not in anchors(path))
    ]
    assert broken == []


def test_the_index_has_every_page() -> None:
    index = ROOT / "docs/README.md"
    assert {path for path, _ in links(index)} >= set((ROOT / "docs").glob("*.md")) - {index}
    assert index in {path for path, _ in links(ROOT / "README.md")}


def test_the_page_installs_the_version_of_lm_eval_that_was_checked() -> None:
    (pin,) = re.findall(r"^lm-eval\S+$", (ROOT / "requirements/lm-eval.in").read_text(), re.M)
    assert f"pip install '{pin}'" in (ROOT / "docs/lm-eval.md").read_text()


# ---- fields ----------------------------------------------------------------------------------------------------------


@cache
def object_schema() -> dict[str, Any]:
    found: dict[str, Any] = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def has_field(path: str) -> bool:
    """Whether the object has a field, such as `spec.data.train[].uri` or `status.run.candidates.tuned`."""
    node = object_schema()
    for part in re.findall(r"[A-Za-z0-9]+|\*|\[\*?\]", path):
        if part.startswith("["):
            following = node.get("items")
        else:
            following = node.get("properties", {}).get(part) or node.get("additionalProperties")
        if following is None:
            return bool(node.get("x-kubernetes-preserve-unknown-fields")) and "properties" not in node
        node = following
    return True


def has_value(path: str) -> bool:
    """Whether the chart has a value, such as `pods.terminationGrace.maximumSeconds`."""
    node: Any = VALUES
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def has_default(path: str) -> bool:
    """Whether it is a field of the spec in the value of the chart with the defaults of pods."""
    block, _, field = path.removeprefix("pods.defaults.").partition(".")
    spec = "spec.workers" if block == "workers" else f"spec.stages.{block}"
    return path.startswith("pods.defaults.") and has_field(f"{spec}.{field}")


def field_names() -> Iterator[tuple[str, str]]:
    """Page and path of every name in backticks that looks like a field: `spec.suspend`, `data.poll: 1h`."""
    for page, text in sentences():
        found = re.fullmatch(r"([a-z][A-Za-z]*(?:\.(?:[A-Za-z0-9]+|\*)|\[\*?\])+)(?:: .+)?", text)
        if found is None or found[1].rpartition(".")[2] in FILE_ENDINGS or found[1] in OTHERS:
            continue
        if found[1].split(".")[0] in {"spec", "status", *SPEC_FIELDS, *VALUES}:
            yield page.name, found[1]


def test_fields_in_backticks_exist() -> None:
    names = list(field_names())
    assert len(names) > 200
    stale = {
        f"{page}: {path}"
        for page, path in names
        if not (has_field(path) or has_field(f"spec.{path}") or has_value(path) or has_default(path))
        and not has_field(f"status.{path}")
    }
    assert stale == set()


def test_fields_in_json_paths_exist() -> None:
    paths = [
        (str(command), path)
        for command in commands("kubectl")
        for word in command.words
        if "jsonpath" in word or "{." in word
        for path in re.findall(r"\.((?:status|spec)\.[A-Za-z.\[\]*]+)", word)
    ]
    assert paths
    assert [(command, path) for command, path in paths if not has_field(path)] == []


@pytest.mark.parametrize(
    ("path", "exists"),
    [
        ("spec.data.train[].uri", True),
        ("spec.data.train.uri", False),
        ("status.run.candidates.*.metrics", True),
        ("status.history[*].result", True),
        ("spec.deepspeed.config.anything", True),
        ("spec.workers.gpus", False),
        ("status.phases", False),
    ],
)
def test_a_field_that_does_not_exist_is_found(path: str, exists: bool) -> None:
    assert has_field(path) is exists
