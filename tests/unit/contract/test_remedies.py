"""Every message of a rule says after what the field must be how to correct it."""

import ast
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

import pytest

from finetune_api import cron, object_metadata, rules
from finetune_api.crd import CEL_RULES
from finetune_api.support import SUPPORT

_REMEDY = re.compile(
    r"[;:] (add|change|choose|correct|divide|exchange|keep|lower|put|remove|rename|set|shorten|use|write)\b"
    r"|(;|: ) ?X|;X| instead"
)
"""X is a part that is computed."""


def messages(module: ModuleType) -> Iterator[str]:
    """The texts in a module that begin with "must", with X for every part that is computed."""
    tree = ast.parse(inspect.getsource(module))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value
        else:
            continue
        if text.startswith("must ") and text != "must ":
            yield text


@pytest.mark.parametrize("module", [rules, cron, object_metadata], ids=lambda module: module.__name__)
def test_every_message_of_a_rule_has_a_remedy(module: ModuleType) -> None:
    found = list(messages(module))
    assert found
    assert [text for text in found if not _REMEDY.search(text)] == []


def test_every_message_of_the_support_table_has_a_remedy() -> None:
    found = {each.requirement(value) for each in SUPPORT.restrictions() for value in each.refused}
    assert len(found) > 20
    assert sorted(text for text in found if not _REMEDY.search(text)) == []


def test_every_message_of_the_api_server_has_a_remedy() -> None:
    found = {message for found in CEL_RULES.values() for _, message in found}
    assert sorted(text for text in found if not _REMEDY.search(text)) == []
