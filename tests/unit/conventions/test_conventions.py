"""Conventions that linters do not check: nesting, layout, dependencies, and text that must not be in the repository."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from finetune_api.constants import ConditionType

ROOT = Path(__file__).parents[3]

MAX_NESTING = 3
KNOWN_HOSTS = (
    *("arxiv.org", "huggingface.co", "json-schema.org", "keepachangelog.com", "semver.org"),
    *("www.apache.org", "www.w3.org"),
    *("storage.googleapis.com", "ACCOUNT.r2.cloudflarestorage.com", "api.wandb.ai"),
)

BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.Match)
"""`with` does not count, because it is a scope and not a branch."""
PARTS = (ast.stmt, ast.excepthandler, ast.match_case)
"""Nodes that can contain blocks; expressions, most of all nodes, cannot."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def files() -> tuple[Path, ...]:
    """Files that are in the repository or untracked and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(path for name in listed if (path := ROOT / name).is_file())


def sources() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, FUNCTIONS))


def nesting(node: ast.AST) -> int:
    """Depth of blocks below a node; `elif` counts as its `if`, a nested function starts at zero."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, PARTS) or isinstance(child, (*FUNCTIONS, ast.ClassDef)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_blocks_are_not_nested_deeply() -> None:
    too_deep = {
        f"{name(path)}:{node.lineno} {node.name}": depth
        for path in sources()
        for node in functions(path)
        if (depth := nesting(node)) > MAX_NESTING
    }
    assert too_deep == {}


@pytest.mark.parametrize(
    ("code", "depth"),
    [
        ("pass", 0),
        ("if a: pass\nelif b: pass\nelif c: pass", 1),
        ("for a in b:\n  if a:\n    with a: pass", 2),
        ("if a: pass\nelse:\n  if b: pass\n  c()", 2),
        ("def inner():\n  if a: pass", 0),
    ],
)
def test_nesting_is_counted_correctly(code: str, depth: int) -> None:
    assert nesting(ast.parse(code)) == depth


def test_every_module_has_a_docstring() -> None:
    code = [
        path for path in sources() if path.is_relative_to(ROOT / "operator") or path.is_relative_to(ROOT / "trainer")
    ]
    assert [name(path) for path in code if ast.get_docstring(tree(path)) is None] == []


def test_source_roots_are_not_packages() -> None:
    """operator/__init__.py would shadow the standard library's operator in everything started from the root."""
    assert [root for root in ("operator", "trainer") if (ROOT / root / "__init__.py").exists()] == []


def test_tests_are_not_packages_and_their_names_are_unique() -> None:
    tests = [path for path in sources() if path.is_relative_to(ROOT / "tests")]
    assert [
        name(path) for path in tests if path.name == "__init__.py" or "operator" in path.parts[len(ROOT.parts) :]
    ] == []
    names = [path.name for path in tests if path.name.startswith("test_")]
    assert sorted({one for one in names if names.count(one) > 1}) == []


def test_nothing_is_mocked() -> None:
    mocks = re.compile(r"^\s*(from|import) (unittest\.mock|unittest import mock|mock|moto)\b", re.MULTILINE)
    assert [name(path) for path in sources() if mocks.search(path.read_text())] == []


def test_addresses_in_files_are_allowed_ones() -> None:
    """No private mirror, registry or machine: pip is configured outside of the repository."""
    texts = {name(path): path.read_text(errors="replace") for path in files()}
    found = {
        (path, host) for path, text in texts.items() for host in re.findall(r"https?://([\w-]+(?:\.[\w-]+)+)", text)
    }
    known = re.compile(
        r"127\.0\.0\.1|.*\.example|.*\.example\.com|[a-z0-9-]+\.[a-z0-9-]+\.svc|"
        + "|".join(map(re.escape, KNOWN_HOSTS))
    )
    assert sorted(one for one in found if not known.fullmatch(one[1])) == []


def test_no_path_of_a_single_machine_is_in_a_file() -> None:
    path_like = re.compile(r"(?<![\w.])/(opt|work|root|home)/\w")
    texts = [path for path in files() if path.suffix not in {".txt", ".svg", ".png"}]
    assert [name(path) for path in texts if path_like.search(path.read_text(errors="replace"))] == []


def test_requirements_have_hashes_and_no_addresses() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        entries = re.split(r"\n(?=[a-z])", path.read_text().strip())
        assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == [], path.name
        assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", path.read_text()), path.name


def test_every_direct_dependency_has_a_lower_bound() -> None:
    data = project()
    groups = [data["project"]["dependencies"], *data["project"]["optional-dependencies"].values()]
    direct = [one for group in (*groups, *data["dependency-groups"].values()) for one in group]
    ours = data["project"]["name"]
    assert [one for one in direct if not one.startswith(f"{ours}[") and not re.search(r">=\s*\d|==\s*\d", one)] == []


def test_every_direct_dependency_is_pinned_for_the_tests() -> None:
    data = project()
    text = (ROOT / "requirements/test.txt").read_text()
    pinned = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    groups = [data["project"]["dependencies"], *data["project"]["optional-dependencies"].values()]
    direct = [one for group in (*groups, *data["dependency-groups"].values()) for one in group]
    names = {re.match(r"[A-Za-z0-9._-]+", one)[0].lower() for one in direct}  # type: ignore[index]
    assert {re.sub(r"[._]", "-", one) for one in names} - pinned - {data["project"]["name"]} == set()


def test_the_changelog_starts_with_the_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [version for version in versions if version != "Unreleased"]
    assert released[0] == project()["project"]["version"]


def test_ci_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text()


def test_every_target_of_make_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z][a-z-]*):(?!=).*$", makefile, re.MULTILINE)
    explained = re.findall(r"^([a-z][a-z-]*):.* ## ", makefile, re.MULTILINE)
    assert sorted(set(targets) - set(explained)) == []
    lines = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []


def test_the_guide_for_operators_explains_every_condition() -> None:
    guide = (ROOT / "docs/operating.md").read_text()
    assert [str(word) for word in ConditionType if f"`{word}`" not in guide] == []
