"""Unpacks the wheels of the bundle into its folder, and runs the checks. In the bundle it is `run.py`.

    python run.py [--device auto|cuda|cpu] [--seconds 480] [--only CHECK ...]

Installs nothing and downloads nothing. Only the standard library is used.
"""

import os
import re
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

MIN_TORCH = (2, 11)
HERE = Path(__file__).resolve().parent


def fits(wheel: str, version: tuple[int, int]) -> bool:
    """Whether a wheel can be used with a version of CPython, by the tags in its name."""
    python, abi, _ = wheel.removesuffix(".whl").split("-")[-3:]
    tags = [re.fullmatch(r"cp(\d)(\d+)", tag) for tag in python.split(".")]
    versions = [(int(tag[1]), int(tag[2])) for tag in tags if tag]
    if abi == "abi3":
        return any(least <= version for least in versions)
    return version in versions if versions else "py3" in python.split(".")


def lacking(wheels: list[str]) -> list[str]:
    """Return the packages of these wheels that the interpreter does not have itself."""
    return [name for name in (wheel.split("-")[0] for wheel in wheels) if not _version(name)]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def check_torch(version: str) -> None:
    """Raise SystemExit if torch is missing or too old."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MIN_TORCH:
        least = ".".join(map(str, MIN_TORCH))
        raise SystemExit(f"torch must be {least} or newer, not {version or 'missing'}; use an image with PyTorch")


def unpack(folder: Path) -> None:
    """Unpack all wheels that fit into `folder`, unless it is complete. Raises SystemExit if a package is missing."""
    version = (sys.version_info.major, sys.version_info.minor)
    wheels = sorted((HERE / "wheels").glob("*.whl"))
    unusable = [wheel.name for wheel in wheels if not fits(wheel.name, version)]
    if missing := lacking(unusable):
        raise SystemExit(f"Python must be of the bundle's version, or have {', '.join(missing)}; it is {version}")
    done = folder / f"complete-{version[0]}.{version[1]}"
    if done.exists():
        return
    started = time.monotonic()
    for wheel in wheels:
        if wheel.name not in unusable:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    done.touch()
    print(f"unpacked {len(wheels) - len(unusable)} wheels in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Replace this process by that of the checks."""
    check_torch(_version("torch"))
    packages = HERE / "packages"
    unpack(packages)
    paths = [str(packages), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "gpu_check", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
