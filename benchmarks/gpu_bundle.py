"""Build the bundle that checks the trainer on a machine with one GPU, and run it here on the CPU.

    python benchmarks/gpu_bundle.py [--out dist/gpu-check.tar.gz] [--python 3.12] [--build-only] [-- --only resume]

The bundle has our wheel, the packages of requirements/trainer.txt that an image with PyTorch lacks, a tokenizer and
prepared rows. Wheels are kept in dist/gpu-check-wheels, so that a second build downloads nothing. It runs with an
interpreter that has only torch, numpy and their dependencies, like such an image.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from gpu_check.start import fits
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 60_000_000
ROOTS = (
    *("accelerate", "boto3", "cronsim", "deepspeed", "filelock", "huggingface-hub", "jinja2", "peft", "pydantic"),
    *("python-json-logger", "ruamel-yaml", "safetensors", "tokenizers", "transformers", "tzdata"),
)
"""What the train stage imports."""
IMAGE = ("torch", "numpy")
"""An image with PyTorch has them and their dependencies."""
UNUSED = (
    *("hf-xet", "ninja", "py-cpuinfo", "typer", "rich", "pygments", "shellingham", "click", "markdown-it-py", "mdurl"),
    "annotated-doc",
)
"""Dependencies for downloads from the hub, for compiling kernels, and of command lines."""
_SOURCE = "deepspeed"
"""Has no wheel on the index; its kernels are not built, because the trainer does not use them."""


def closure(names: Iterable[str], environment: dict[str, str], without: Collection[str] = ()) -> set[str]:
    """Return the installed packages that these need, and they themselves, in an environment of markers."""
    found: set[str] = set()
    todo = [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found or name in without:
            continue
        found.add(name)
        for text in metadata.distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                todo.append(canonicalize_name(requirement.name))
    return found


def locked(text: str, environment: dict[str, str]) -> dict[str, str]:
    """Return package -> its requirement with hashes, of those that apply in an environment of markers."""
    found = {}
    for block in re.split(r"\n(?=[a-zA-Z0-9])", re.sub(r"(?m)^\s*#.*\n?", "", text)):
        first, _, hashes = block.strip().partition("\\")
        if not first:
            continue
        requirement = Requirement(first)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            pins = f"{requirement.name}{requirement.specifier}"
            found[canonicalize_name(requirement.name)] = f"{pins} \\{hashes.rstrip()}\n"
    return found


def environment_of(python: str) -> dict[str, str]:
    """Return the environment of markers of CPython on Linux, x86-64."""
    fixed = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    own = {name: str(value) for name, value in default_environment().items()}
    return own | fixed | {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}


def fetch_wheels(folder: Path, python: str) -> list[Path]:
    """Download the wheels that are missing in `folder`, verified by their hashes, and return all of them."""
    environment = environment_of(python)
    image = closure(IMAGE, environment)
    # An image may have another version of these than the locked ones.
    names = closure(ROOTS, environment, without={*UNUSED, *IMAGE}) - (image - {"filelock", "typing-extensions"})
    pins = locked((ROOT / "requirements/trainer.txt").read_text(), environment)
    folder.mkdir(parents=True, exist_ok=True)
    stems = {name: _stem(pins[name]) for name in sorted(names)}
    missing = [name for name, stem in stems.items() if not _matching(folder, stem, python)]
    if built := [pins[name] for name in missing if name == _SOURCE]:
        _pip(["wheel", "--no-build-isolation", "--wheel-dir", str(folder)], built)
    if ready := [pins[name] for name in missing if name != _SOURCE]:
        only = ["--only-binary", ":all:", "--python-version", python]
        _pip(["download", *only, "--dest", str(folder)], ready)
    return [_matching(folder, stem, python)[0] for stem in stems.values()]


def _stem(pin: str) -> str:
    """Return how the name of the wheel begins."""
    requirement = Requirement(pin.partition("\\")[0])
    return _normal(f"{requirement.name.replace('-', '_')}-{str(requirement.specifier).removeprefix('==')}-")


def _matching(folder: Path, stem: str, python: str) -> list[Path]:
    major, minor = map(int, python.split("."))
    return [
        path for path in folder.glob("*.whl") if _normal(path.name).startswith(stem) and fits(path.name, (major, minor))
    ]


def _normal(name: str) -> str:
    return name.lower().replace(".", "_")


def _pip(command: list[str], pins: list[str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "requirements.txt"
        file.write_text("".join(pins))
        options = ["--quiet", "--no-deps", "--require-hashes", "-r", str(file)]
        environment = os.environ | {"DS_BUILD_OPS": "0"}
        subprocess.run([sys.executable, "-m", "pip", *command, *options], check=True, env=environment)


def build(out: Path, python: str, wheels: Path) -> None:
    """Write the bundle. Raises SystemExit if it is larger than it may be."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "gpu-check"
        (folder / "wheels").mkdir(parents=True)
        for wheel in fetch_wheels(wheels, python):
            shutil.copy(wheel, folder / "wheels")
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
        subprocess.run([*command, "--directory", folder / "wheels"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        source = ROOT / "benchmarks/gpu_check"
        shutil.copytree(source, folder / "gpu_check", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(source / "start.py", folder / "run.py")
        shutil.copy(ROOT / "docs/gpu-check.md", folder / "README.md")
        shutil.copy(ROOT / "LICENSE", folder)
        make_assets(folder / "assets")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(out, "w:gz", compresslevel=6) as archive:
            archive.add(folder, "gpu-check")
    size = out.stat().st_size
    print(f"{out}: {size / 1e6:.1f} MB, for Python {python}", flush=True)
    if size > MAX_BYTES:
        raise SystemExit(
            f"{out} must have at most {MAX_BYTES / 1e6:.0f} MB; add to UNUSED what the checks do not import"
        )


def make_assets(folder: Path) -> None:
    """Make the tokenizer and the rows with the prepare stage."""
    paths = [ROOT / "benchmarks", ROOT / "operator", ROOT / "trainer", ROOT / "tests/support"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-m", "gpu_check.assets", str(folder)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def run(bundle: Path, arguments: list[str]) -> int:
    """Unpack the bundle and run it like in an image with PyTorch, with an empty environment of this interpreter.

    Returns its exit status.
    """
    with tempfile.TemporaryDirectory() as work:
        with tarfile.open(bundle) as archive:
            archive.extractall(work, filter="data")
        folder = Path(work) / "gpu-check"
        make_image(Path(work) / "image", [path.name for path in (folder / "wheels").glob("*.whl")])
        venv.create(Path(work) / "python", symlinks=True)
        command = [Path(work) / "python/bin/python", folder / "run.py", "--device", "cpu", *arguments]
        environment = os.environ | {"PYTHONPATH": str(Path(work) / "image")}
        return subprocess.run(command, check=False, env=environment).returncode


def make_image(folder: Path, wheels: Iterable[str]) -> None:
    """Fill a folder with links to the packages of an image, and to those whose wheels are for another version."""
    folder.mkdir()
    version = (sys.version_info.major, sys.version_info.minor)
    others = {wheel.split("-")[0] for wheel in wheels if not fits(wheel, version)}
    names = closure(IMAGE, environment_of(f"{version[0]}.{version[1]}")) | others
    for target in {path for name in names for path in _top_levels(name)}:
        (folder / target.name).symlink_to(target)


def _top_levels(name: str) -> Iterator[Path]:
    distribution = metadata.distribution(name)
    for file in distribution.files or ():
        if file.parts[0] not in ("..", "__pycache__"):
            yield Path(str(distribution.locate_file(file.parts[0])))


def main() -> int:
    """Build, then run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist/gpu-check.tar.gz")
    parser.add_argument("--python", default="3.12", help="version of the image's Python")
    parser.add_argument("--build-only", action="store_true", help="do not run the bundle")
    parser.add_argument("arguments", nargs="*", help="of the checks, after --")
    options = parser.parse_args()
    build(options.out, options.python, ROOT / "dist/gpu-check-wheels")
    return 0 if options.build_only else run(options.out, options.arguments)


if __name__ == "__main__":
    sys.exit(main())
