"""Which modules can be imported without torch, in a new interpreter."""

import subprocess
import sys
from pathlib import Path

ROOTS = [str(Path(__file__).parents[3] / root) for root in ("operator", "trainer")]
MODULES = ("tasks.metrics", *(f"evaluate.{name}" for name in ("significance", "compare", "report", "model_card")))


def test_metrics_and_documents_are_made_without_torch():
    imports = ", ".join(f"finetune_trainer.{module}" for module in MODULES)
    code = f"import sys, {imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(ROOTS)})
