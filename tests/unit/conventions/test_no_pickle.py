"""Our code never unpickles: otherwise, access to the port of a rank, or to a checkpoint, would allow code execution."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

MODULES = frozenset({"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"})
OBJECT_COLLECTIVES = frozenset(
    {
        "all_gather_object",
        "gather_object",
        "broadcast_object_list",
        "scatter_object_list",
        "send_object_list",
        "recv_object_list",
    }
)
TORCH_FILES = frozenset({"load", "save"})


def pickling(code: str) -> Iterator[str]:
    """Yield every use of pickle in a module's text, as `line name`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (f"{node.lineno} {name}" for name in names if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if alias.name in OBJECT_COLLECTIVES]
            names += [node.module] if (node.module or "").partition(".")[0] in MODULES else []
            yield from (f"{node.lineno} {name}" for name in names)
        elif isinstance(node, ast.Attribute):
            is_file = node.attr in TORCH_FILES and isinstance(node.value, ast.Name) and node.value.id == "torch"
            if node.attr in OBJECT_COLLECTIVES or is_file:
                yield f"{node.lineno} {node.attr}"


def test_no_module_of_ours_uses_pickle() -> None:
    found = {
        str(path.relative_to(ROOT)): uses
        for folder in ("operator", "trainer")
        for path in (ROOT / folder).rglob("*.py")
        if (uses := list(pickling(path.read_text())))
    }
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import os, joblib.memory",
        "from pickle import loads",
        "from torch.distributed import all_gather_object",
        "import torch.distributed as dist\ndist.broadcast_object_list([1])",
        "import torch\ntorch.load('file')",
    ],
)
def test_each_use_of_pickle_is_found(code: str) -> None:
    assert len(list(pickling(code))) == 1


def test_json_and_tensors_are_not_pickles() -> None:
    assert list(pickling("import json\njson.loads('1')\nimport torch\ntorch.frombuffer(b'', dtype=torch.uint8)")) == []
