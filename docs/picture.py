"""Run the demo and write its output as docs/demo.svg. `make picture` calls this.

The picture contains the output of the run, with the last frame of the live display.
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
    shutil.rmtree(WORK_DIR, ignore_errors=True)  # the picture must show a first run
    # Without a terminal, only the last frame of the live part is written.
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=False)
    console.print(Text("$ make demo", style="bold green"))
    with LiveDisplay(console) as display:
        result = run_demo(WORK_DIR, display)
    for line in closing_lines(result):
        console.print(Text(line))
    PICTURE.write_text(self_contained(console.export_svg(title="finetune-operator")))
    print(f"{PICTURE}: {result.seconds:.0f} s, {len(result.trainings)} attempts")


def self_contained(svg: str) -> str:
    """Remove the fonts that rich loads from a server, and its comment, which contains a URL."""
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"@font-face\s*\{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()
