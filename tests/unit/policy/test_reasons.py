"""Every reason that the operator writes is in the enumeration, and every one in it is written and explained."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune_api
import finetune_operator
from finetune_api.constants import Reason
from finetune_api.exit_codes import ExitCode, name_of
from finetune_api.reasons import DISRUPTIONS, FAILURES, OTHER_FAILURES, REASONS, troubleshooting_page
from finetune_operator.observed import EVICTED

OPERATOR = Path(finetune_operator.__path__[0])
STAGES = Path(finetune_api.__path__[0]) / "stages.py"
"""The reasons of the stages, which the policy writes."""

SETS = {"_WARNINGS", "_NOTES"}
"""Sets of reasons that decide how one is reported; they write none."""

WRITERS = {"JobEvent", "Condition"}
"""Classes whose argument `reason` is written to the cluster."""


def statements() -> Iterator[tuple[Path, ast.stmt]]:
    for path in [*sorted(OPERATOR.rglob("*.py")), STAGES]:
        yield from ((path, statement) for statement in ast.parse(path.read_text()).body)


def reasons_in(node: ast.AST) -> set[str]:
    """Reasons that the code uses as `Reason.NAME`."""
    return {
        one.attr
        for one in ast.walk(node)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "Reason"
    }


def assigned(statement: ast.stmt) -> str:
    return ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else ""


def literal_reasons(node: ast.AST) -> set[str]:
    """Texts that are passed as the reason of a condition or an Event instead of a member of the enumeration."""
    found = set()
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in WRITERS:
            given = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "reason")]
            found |= {ast.unparse(one) for one in given if isinstance(one, ast.Constant | ast.JoinedStr)}
    return found


def test_every_reason_that_is_written_is_a_member_of_the_enumeration() -> None:
    """mypy checks the types of the arguments; only a text could be another reason."""
    assert {f"{path.name}: {text}" for path, one in statements() for text in literal_reasons(one)} == set()
    assert literal_reasons(ast.parse("JobEvent('Other', message)\nCondition(type=a, reason='More')")) == {
        "'Other'",
        "'More'",
    }


def test_every_member_of_the_enumeration_is_written() -> None:
    used = {name for _, one in statements() if assigned(one) not in SETS for name in reasons_in(one)}
    assert used == {reason.name for reason in Reason}


def test_every_reason_is_explained_in_the_order_of_the_enumeration() -> None:
    assert list(REASONS) == list(Reason)


def test_every_exit_code_of_a_failure_is_explained() -> None:
    assert list(FAILURES) == [code for code in ExitCode if code is not ExitCode.DONE]


def test_every_class_without_an_exit_code_is_explained() -> None:
    code = (OPERATOR / "policy/failure.py").read_text()
    given = set(re.findall(r'failure_class(?:=|": )"(\w+)"', code)) | {EVICTED}
    assert given == {*DISRUPTIONS, *OTHER_FAILURES}


@pytest.mark.parametrize("name", [*map(str, Reason), *map(name_of, FAILURES), *DISRUPTIONS, *OTHER_FAILURES])
def test_the_page_has_an_entry(name: str) -> None:
    assert troubleshooting_page().count(f"\n### {name}\n") == 1


def test_the_headings_of_the_page_are_different() -> None:
    headings = re.findall(r"^##+ (.+)$", troubleshooting_page(), re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_lines_are_wrapped() -> None:
    commands = re.compile(r"^\$ ")
    assert [line for line in troubleshooting_page().splitlines() if len(line) > 120 and not commands.match(line)] == []
