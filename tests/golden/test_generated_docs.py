"""Tables of the guide that are generated from the code; update them with FINETUNE_UPDATE_GOLDEN=1."""

import os
import re
from pathlib import Path

from finetune_api.scopes import paths
from finetune_api.v1alpha1 import Scope

GUIDE = Path(__file__).parents[2] / "docs" / "operating.md"

EFFECTS = {
    Scope.DATA: "a new run, which prepares the data again where the rows depend on the field",
    Scope.RUN: "a new run on the prepared data",
    Scope.ATTEMPT: "the next attempt of the same run uses it",
    Scope.EVALUATION: "the model is evaluated and exported again within the same run, also if the run is complete",
    Scope.NOW: "takes effect immediately",
}


def scope_table() -> str:
    rows = ["| scope | effect of a change | fields of `spec` |", "|---|---|---|"]
    for scope in Scope:
        fields = ", ".join(f"`{path.removeprefix('spec.')}`" for path in paths(scope))
        rows.append(f"| `{scope}` | {EFFECTS[scope]} | {fields} |")
    return "\n".join(rows)


def test_the_table_of_scopes_in_the_guide_is_up_to_date() -> None:
    text = GUIDE.read_text()
    pattern = r"(<!-- generated: scopes -->\n).*?(<!-- end -->)"
    expected, count = re.subn(pattern, lambda found: f"{found[1]}{scope_table()}\n{found[2]}", text, flags=re.DOTALL)
    assert count == 1
    if os.environ.get("FINETUNE_UPDATE_GOLDEN"):
        GUIDE.write_text(expected)
    assert GUIDE.read_text() == expected, "run FINETUNE_UPDATE_GOLDEN=1 pytest tests/golden"
