"""What may be imported without torch, seen from a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOTS = [str(Path(__file__).parents[3] / root) for root in ("operator", "trainer")]


@pytest.mark.parametrize("module", ["metrics"])
def test_the_module_imports_no_torch(module):
    code = f"import sys, finetune_trainer.evaluate.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(ROOTS)})
