"""docs/reference.md: every field of the object has an entry, and every entry says what the models say."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from finetune_api.crd import crd
from finetune_api.reference import anchor, reference_page
from finetune_api.scopes import scopes

MAX_LINE = 120


def sections() -> Iterator[tuple[list[str], str]]:
    """Paths of a block, and the text of its section."""
    for section in re.split(r"\n###? ", reference_page())[1:]:
        heading, _, body = section.partition("\n")
        others = re.search(r"^(?:Also|Fields of) (.*?)\.\n\n", body, re.MULTILINE | re.DOTALL)
        yield [heading, *(re.findall(r"`([^`]+)`", others[1]) if others else [])], body


@cache
def entries() -> dict[str, str]:
    """Path of every field -> its entry on one line."""
    found = {}
    for paths, body in sections():
        fields = re.findall(r"^- \*\*`(\w+)`\*\* (.*?)(?=\n- |\n\n|\Z)", f"{body}\n\n", re.MULTILINE | re.DOTALL)
        for path in [] if paths == ["FineTuneJob"] else paths:
            found |= {f"{path}.{name}": " ".join(text.split()) for name, text in fields}
    return found


def fields(node: dict[str, Any], path: str) -> Iterator[str]:
    """Paths of the properties of a structural schema, as the page writes them."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from fields(child, f"{path}.{name}")
    if "items" in node:
        yield from fields(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from fields(node["additionalProperties"], f"{path}.*")


@pytest.mark.parametrize("block", ["spec", "status"])
def test_every_field_of_the_crd_has_an_entry(block: str) -> None:
    schema = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"][block]
    found = list(fields(schema, block))
    assert len(found) > 100
    assert [path for path in found if path not in entries()] == []


def test_every_field_has_a_description_or_a_section_with_one() -> None:
    bare = [path for path, text in entries().items() if not re.search(r"\): \w|\): `|\[object\]\(#", text)]
    assert bare == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("spec.training.epochs", "(integer, 1 to 10000; scope `Run`): Passes over the training split."),
        ("spec.training.learningRate", "(number, 1e-12 to 10; scope `Run`): Peak learning rate."),
        ("spec.data.test", "(object; default `{fraction: 0.1}`; scope `Data`): Split that only the evaluate stage"),
        (
            "spec.output.formats",
            "(list of 1 to 5 entries, each one of `Merged`, `Adapter`, `Int8`, `GGUF`, `CompressedTensors`; default "
            "`[Merged]`;",
        ),
        ("spec.stages.evaluate.volumes[].emptyDir", "(any object with at most 32 keys): A folder that is deleted"),
        (
            "spec.runNonce",
            "(string, at most 63 characters: letters, digits, '.', '_' and '-'; scope `Run`): Free text.",
        ),
        ("spec.checkpoint.maxLostWork", "(Duration): Save often enough"),
        ("status.run.candidates", "(map, each value an object): Models that were evaluated on the test split."),
    ],
)
def test_an_entry_has_type_bounds_default_scope_and_docstring(path: str, expected: str) -> None:
    without_links = re.sub(r"\[(\w+)\]\(#\w+\)", r"\1", entries()[path])
    assert without_links.startswith(expected)


def test_an_entry_or_its_section_has_the_scope_of_the_field() -> None:
    of_sections = {
        f"{path}.": stated[1]
        for paths, body in sections()
        for path in paths
        if (stated := re.search(r"Scope of all fields: `(\w+)`", body))
    }
    wrong = {}
    for path, scope in scopes().items():
        own = re.search(r"scope `(\w+)`", entries()[path.removesuffix("[]")])
        found = own[1] if own else of_sections.get(path.removesuffix("[]").rpartition(".")[0] + ".")
        if found != scope:
            wrong[path] = found
    assert wrong == {}


def test_links_lead_to_headings_of_the_page() -> None:
    page = reference_page()
    anchors = {anchor(heading) for heading in re.findall(r"^##+ (.+)$", page, re.MULTILINE)}
    assert len(anchors) == len(re.findall(r"^##+ ", page, re.MULTILINE)), "headings must be different"
    assert set(re.findall(r"\]\(#(.+?)\)", page)) - anchors == set()


def test_lines_are_wrapped() -> None:
    assert [line for line in reference_page().splitlines() if len(line) > MAX_LINE] == []
