"""Import bitsandbytes only where a base model is quantized. PEFT imports it with itself if it is installed.

The import takes three seconds of CPU time, which every pod would spend.
"""

import importlib
import sys
from typing import Any

_NAME = "bitsandbytes"


def disable_bitsandbytes() -> None:
    """Let this process behave as if bitsandbytes was not installed, until `import_bitsandbytes` is called."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault(_NAME, None)  # an import of such a name raises ImportError


def import_bitsandbytes() -> Any:
    """Import bitsandbytes, and let PEFT and transformers find it from now on."""
    modules: dict[str, Any] = sys.modules
    if modules.get(_NAME, ...) is None:
        del modules[_NAME]
        peft = importlib.import_module("peft.import_utils")
        transformers = importlib.import_module("transformers.utils.import_utils")
        # They remember that it was missing.
        for found in (peft.is_bnb_available, peft.is_bnb_4bit_available, transformers.is_bitsandbytes_available):
            found.cache_clear()
    return importlib.import_module(_NAME)
