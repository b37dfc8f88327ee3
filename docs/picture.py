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
from finetune_cli.demo import run_demo
from finetune_cli.display.live import LiveDisplay

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
    PICTURE.write_text(without_foreign_fonts(console.export_svg(title="finetune-operator")))
    print(f"{PICTURE}: {result.seconds:.0f} s, {len(result.trainings)} attempts")


def without_foreign_fonts(svg: str) -> str:
    """A picture must not make its reader's browser load anything: any monospace font will do."""
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()
