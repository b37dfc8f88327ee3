"""Real image builds without a registry: buildah in one folder, with a base image of this machine's files."""

import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .control_plane import require_root
from .daemons import TAIL, run
from .images import ROOT
from .missing import MissingError

PACKAGES = ("buildah",)
BASE = "finetune.test/base:1"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PROGRAMS = ("sh", "bash", "cat", "chmod", "id", "ls", "mkdir", "rm")
LIBRARIES = (
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "librt.so.1", "libutil.so.1"),
    *("libgcc_s.so.1", "libstdc++.so.6"),
)
"""Files that wheels expect in any base image."""
LEFT_OUT = ("__pycache__", "site-packages", "test", "tests", "idlelib", "*tkinter*", "turtledemo", "config-*")
BASE_FILE = f"""\
FROM scratch
COPY . /
ENV PATH=/usr/local/bin:/usr/bin SSL_CERT_FILE=/{CERTIFICATES} PIP_CERT=/{CERTIFICATES}
RUN python -m ensurepip
"""
MIRRORS = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")


def require_buildah() -> None:
    require_root()
    if shutil.which("buildah") is None:
        raise MissingError("images are built with buildah (make cluster-tools, or: apt-get install -y buildah)")
    if find_spec("ensurepip") is None:
        raise MissingError(
            "the base image is made of this Python, which lacks ensurepip (apt-get install python3-venv)"
        )


@dataclass(frozen=True)
class Buildah:
    """`buildah("images")`; all of its state is in the folder."""

    folder: Path

    def __call__(self, command: str, *arguments: str | Path, within: float = 120) -> str:
        storage = ("--root", self.folder / "storage", "--runroot", self.folder / "run", "--storage-driver", "overlay")
        scratch = self.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        done = subprocess.run(
            list(map(str, ("buildah", *storage, command, *arguments))),
            env=dict(os.environ) | {"TMPDIR": str(scratch), "BUILDAH_ISOLATION": "chroot"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
        if done.returncode != 0:
            output = f"{done.stdout[-TAIL:]}\n{done.stderr[-TAIL:]}"
            raise AssertionError(f"buildah {command}: exit status {done.returncode}\n{output}")
        return done.stdout

    def make_base(self) -> None:
        """Create an image like an official slim image: a C library, a shell, and Python with pip in /usr/local."""
        tree = self.folder / "base"
        copy_python(tree / "usr/local")
        copy_programs(tree)
        file = self.folder / "Basefile"
        file.write_text(BASE_FILE)
        self("build", "--tag", BASE, "--file", file, tree)

    def build(self, target: str, tag: str, context: Path = ROOT, *build_args: str) -> None:
        """Build a target of our Dockerfile, with network access to this machine's package sources."""
        mirrors = [f"{name}={os.environ[name]}" for name in MIRRORS if name in os.environ]
        arguments = [f"--build-arg={argument}" for argument in (f"BASE_IMAGE={BASE}", *mirrors, *build_args)]
        self("build", *arguments, "--target", target, "--tag", tag, context, within=900)

    def inside(self, image: str, *command: str) -> str:
        """Output of a command in a container of the image, as the image's user."""
        container = self("from", "--pull=never", image).strip()
        try:
            return self("run", container, "--", *command)
        finally:
            self("rm", container)

    def described(self, image: str) -> dict[str, Any]:
        """The image's configuration."""
        config: dict[str, Any] = json.loads(self("inspect", "--type=image", image))["OCIv1"]["config"]
        return config

    def megabytes(self, image: str) -> float:
        """Size of the files in its containers."""
        container = self("from", "--pull=never", image).strip()
        try:
            tree = self("mount", container).strip()
            return int(run("du", "--summarize", "--bytes", "--one-file-system", tree).split()[0]) / 1e6
        finally:
            self("rm", container)

    def archive(self, image: str, name: str) -> bytes:
        """The image as a docker-archive with this name."""
        path = self.folder / "image.tar"
        self("push", image, f"docker-archive:{path}:{name}")
        try:
            return path.read_bytes()
        finally:
            path.unlink()

    def remove(self) -> None:
        """Delete everything, including the folder."""
        self("rm", "--all")
        self("rmi", "--all", "--force")
        subprocess.run(["umount", self.folder / "storage/overlay"], capture_output=True, check=False)
        shutil.rmtree(self.folder)


def copy_python(target: Path) -> None:
    """Copy this Python, without its packages, as a separate installation."""
    source, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    standard = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(standard, target / "lib" / version, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for library in source.glob("lib/libpython*.so*"):
        shutil.copy(library, target / "lib", follow_symlinks=False)
    (target / "bin").mkdir()
    shutil.copy((Path(sys.base_prefix) / "bin" / version).resolve(), target / "bin" / version)
    for name in ("python", "python3"):
        (target / "bin" / name).symlink_to(version)


def copy_programs(tree: Path) -> None:
    """Copy a few programs, all libraries that the tree needs, and the files in /etc that programs read."""
    (tree / "usr/bin").mkdir(parents=True)
    for name in PROGRAMS:
        shutil.copy(Path(shutil.which(name) or name).resolve(), tree / "usr/bin" / name)
    (tree / "bin").symlink_to("usr/bin")
    needed = libraries(path for path in tree.rglob("*") if is_program(path))
    for library in needed:
        copy = tree / str(library)[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)
    for folder in ("etc", "tmp", "var/tmp", "run"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (tree / "etc/group").write_text("root:x:0:\n")
    (tree / CERTIFICATES).parent.mkdir(parents=True)
    trusted = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    if trusted is not None:
        shutil.copy(trusted, tree / CERTIFICATES)
    folders = sorted({str(library.parent) for library in needed})
    (tree / "etc/ld.so.conf").write_text("\n".join(["/usr/local/lib", *folders, ""]))
    run("ldconfig", "-r", tree)


def is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def libraries(programs: Iterable[Path]) -> set[Path]:
    """Libraries that the loader finds on this machine for these programs, and `LIBRARIES`; not those of Python."""
    needed = run("ldd", *programs)
    known = run("ldconfig", "-p")
    extra = [found[1] for name in LIBRARIES if (found := re.search(rf"{re.escape(name)} .*=> (/\S+)", known))]
    found = {Path(one) for one in [*re.findall(r"(?:=> |^\t)(/\S+) \(0x", needed, re.MULTILINE), *extra]}
    return {path for path in found if not path.is_relative_to(sys.base_prefix) or sys.base_prefix == "/usr"}
