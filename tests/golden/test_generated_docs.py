"""Pages and tables of the docs that are generated from the code; update them with FINETUNE_UPDATE_GOLDEN=1."""

import os
import re
from pathlib import Path

from finetune_api.reasons import troubleshooting_page
from finetune_api.reference import SCOPE_EFFECTS, reference_page
from finetune_api.scopes import paths
from finetune_api.v1alpha1 import Scope
from golden import same_as_golden

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "operating.md"


def scope_table() -> str:
    rows = ["| scope | effect of a change | fields of `spec` |", "|---|---|---|"]
    for scope in Scope:
        fields = ", ".join(f"`{path.removeprefix('spec.')}`" for path in paths(scope))
        rows.append(f"| `{scope}` | {SCOPE_EFFECTS[scope]} | {fields} |")
    return "\n".join(rows)


def test_the_api_reference_is_that_of_the_models() -> None:
    same_as_golden(DOCS / "reference.md", reference_page())


def test_the_page_for_troubleshooting_is_that_of_the_tables() -> None:
    same_as_golden(DOCS / "troubleshooting.md", troubleshooting_page())


def test_the_table_of_scopes_in_the_guide_is_up_to_date() -> None:
    text = GUIDE.read_text()
    pattern = r"(<!-- generated: scopes -->\n).*?(<!-- end -->)"
    expected, count = re.subn(pattern, lambda found: f"{found[1]}{scope_table()}\n{found[2]}", text, flags=re.DOTALL)
    assert count == 1
    if os.environ.get("FINETUNE_UPDATE_GOLDEN"):
        GUIDE.write_text(expected)
    assert GUIDE.read_text() == expected, "run FINETUNE_UPDATE_GOLDEN=1 pytest tests/golden"
