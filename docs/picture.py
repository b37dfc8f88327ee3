"""Draws docs/demo.svg: what `make demo` shows, from a real run of it. `make picture` calls this.

Everything in the picture is printed by the run itself; only frames that were replaced by later ones are left out.
"""

import io
import re
import shutil
from pathlib import Path

from rich.console import Console
from rich.text import Text

from finetune_cli.commands.demo import closing_lines
from finetune_cli.display.live import LiveDisplay
from finetune_cli.local.demo import run_demo

COLUMNS = 92
WORK_DIR = Path(".finetune/picture")
PICTURE = Path(__file__).with_name("demo.svg")


def main() -> None:
    """Run the demo and write the picture. Raises one of `finetune_cli.exit_status.USER_ERRORS`."""
    shutil.rmtree(WORK_DIR, ignore_errors=True)  # a picture shows the first run, not the tenth
    # Not a terminal: then the live part is written once, as it ended.
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=False)
    console.print(Text("$ make demo", style="bold green"))
    with LiveDisplay(console) as display:
        result = run_demo(WORK_DIR, display)
    for line in closing_lines(result):
        console.print(Text(line))
    PICTURE.write_text(self_contained(console.export_svg(title="finetune-operator")))
    print(f"{PICTURE}: {result.seconds:.0f} s, {len(result.trainings)} attempts")


def self_contained(svg: str) -> str:
    """Without the fonts that rich would fetch from elsewhere, and without its comment, which holds an address."""
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()
