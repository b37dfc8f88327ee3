"""Virtual environments of their own for programs whose packages cannot be installed with those of the trainer.

An environment is created once from a lock file in `requirements/`, with hashes, and kept in the cache of the tests.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from testcluster.binaries import Say, cache_folder, locked
from testcluster.missing import MissingError


def environment(name: str, lock_file: Path, *, title: str, say: Say = print) -> Path:
    """The Python interpreter of the environment `name`. Raises MissingError if it cannot be created.

    `title` describes its packages in messages.
    """
    key = hashlib.sha256(lock_file.read_bytes() + sys.version.encode()).hexdigest()[:16]
    target = cache_folder() / f"{name}-{key}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f"{name}.lock", say):
            if not target.is_dir():
                _create(target, lock_file, title, say)
    return target / "bin" / "python"


def _create(target: Path, lock_file: Path, title: str, say: Say) -> None:
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise MissingError(f"uv is not installed, which creates the environment of {title}")
    say(f"installing {title} into {target}; this takes a few minutes")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "venv"
        _run(uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(folder))
        python = str(folder / "bin" / "python")
        # The lock file is complete. Dependencies are not resolved again, because it may override some of them.
        packages = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(lock_file))
        _run(uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *packages)
        folder.rename(target)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
