"""Files that are generated and committed."""

import os
from pathlib import Path


def same_as_golden(path: Path, text: str) -> None:
    """FINETUNE_UPDATE_GOLDEN=1 overwrites the file."""
    if os.environ.get("FINETUNE_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), (
        f"{path.name} differs; if that is intended, run `make golden` and review the difference"
    )
