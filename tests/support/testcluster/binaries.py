"""The programs of the test cluster, built once from source into a folder in the user's cache.

No registry with them is available, and distributions do not have this version. Go builds them from modules that
`tests/kubernetes/go.sum` pins. They are one Go module, so that a library has one version and is compiled once for all
of them. A build is cached under a hash of all its inputs.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .missing import MissingError

MODULE = Path(__file__).parents[2] / "kubernetes"
KUBERNETES_VERSION = "v1.37.2"  # as in go.mod

Say = Callable[[str], None]
"""Reports progress to the user. Not `print`, whose output pytest would keep until the end."""


def version_flags(version: str) -> str:
    """A build from a module does not contain its version; clients would get v0.0.0-master."""
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in values.items())


@dataclass(frozen=True)
class Programs:
    """Programs that are built together."""

    name: str
    """Also the folder of their own source code, if they have any."""
    packages: dict[str, str]
    """Program -> Go package."""
    minutes: float
    """Duration of a build on two cores, in the order of `tools.main` without a cache."""
    ldflags: str = "-s -w"
    links: tuple[str, ...] = ()
    """Additional names of the first program."""
    module: Path = MODULE

    def sources(self) -> Iterator[Path]:
        yield from (self.module / "go.mod", self.module / "go.sum")
        yield from sorted((MODULE / self.name).glob("**/*.go"))

    def key(self) -> str:
        inputs = (go_version(), self.ldflags, *self.links, *self.packages, *self.packages.values())
        digest = hashlib.sha256("\n".join(inputs).encode())
        for path in self.sources():
            digest.update(str(path.relative_to(MODULE)).encode() + path.read_bytes())
        return digest.hexdigest()[:16]


KUBERNETES = Programs(
    "cluster",
    {"testcluster": "./cluster", "pause": "./cluster/pause"},
    minutes=6,
    ldflags=f"-s -w {version_flags(KUBERNETES_VERSION)}",
    links=("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
)
COREDNS = Programs("coredns", {"coredns": "./coredns"}, minutes=0.2)
KWOK = Programs("kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, minutes=3, module=MODULE / "kwok")
"""A module of its own, because it needs an older version of the kubelet's packages."""
FLUX = Programs(
    "flux", {"kustomize-controller": "github.com/fluxcd/kustomize-controller"}, minutes=3, module=MODULE / "flux"
)
"""A module of its own, because it needs an older version of the Kubernetes libraries, and SDKs of several clouds."""
KUEUE = Programs("kueue", {"kueue": "sigs.k8s.io/kueue/cmd/kueue"}, minutes=5, module=MODULE / "kueue")
"""A module of its own, because it needs an older version of the Kubernetes libraries, and APIs of other operators."""
HELM_VERSION = "v4.3.2"  # as in go.mod
HELM = Programs(
    "helm",
    {"helm": "helm.sh/helm/v4/cmd/helm"},
    minutes=2,
    ldflags=f"-s -w -X helm.sh/helm/v4/internal/version.version={HELM_VERSION}",
)
HEALTH = Programs("health", {"health": "./health"}, minutes=0.1)
"""Verdicts of kstatus, Flux and Argo CD."""
REGISTRY = Programs("registry", {"registry": "./registry"}, minutes=0.1)
"""An OCI registry in memory."""


def cache_folder() -> Path:
    if named := os.environ.get("FINETUNE_TEST_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator" / "tests"


def go_version() -> str:
    if shutil.which("go") is None:
        raise MissingError("Go 1.26 or newer is not on the path; it is required to build the cluster's programs")
    names = ["GOVERSION", "GOOS", "GOARCH"]
    return subprocess.run(["go", "env", *names], cwd=MODULE, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True)
class DownloadedModule:
    """The files of a Go module in the module cache."""

    folder: Path
    checksum: str
    """As in go.sum."""


def downloaded_module(programs: Programs, module: str) -> DownloadedModule:
    """A Go module in the version that these programs require, or in its own one, `PATH@VERSION`. Go downloads it if
    necessary."""
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, cwd=programs.module, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    found = json.loads(done.stdout)
    return DownloadedModule(Path(found["Dir"]), found["Sum"])


def built(programs: Programs, say: Say = print) -> Path:
    """The folder with these programs; builds them if necessary, or waits for another process that builds
    them."""
    target = cache_folder() / f"{programs.name}-{programs.key()}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.parent / f"{programs.name}.lock", say):
        if not target.is_dir():
            build(programs, target, say)
    return target


def is_built(programs: Programs) -> bool:
    return (cache_folder() / f"{programs.name}-{programs.key()}").is_dir()


def build(programs: Programs, target: Path, say: Say) -> None:
    names = ", ".join((*programs.links, *programs.packages))
    say(f"building {names} into {target}; the first time this takes about {programs.minutes:g} minutes on two cores")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{programs.name}-") as scratch:
        folder = Path(scratch) / "bin"
        folder.mkdir()
        for program, package in programs.packages.items():
            compile_program(programs, package, folder / program)
        for link in programs.links:
            (folder / link).symlink_to(next(iter(programs.packages)))
        folder.rename(target)
    say(f"built in {time.monotonic() - started:.0f} s")


def compile_program(programs: Programs, package: str, target: Path) -> None:
    # The linker strips debug information anyway; not generating it saves a sixth of the compiler's time.
    command = ["go", "build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", programs.ldflags]
    command += ["-o", str(target), package]
    if nice := shutil.which("nice"):
        command = [nice, "-n", "19", *command]
    # Static: pause runs in an image without libraries. The compiler does not need garbage collection below a few GB.
    environment = dict(os.environ) | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly"}
    environment |= {"GOGC": "off", "GOMEMLIMIT": "3GiB"}
    done = subprocess.run(command, cwd=programs.module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(f"go build {package} in {programs.module} failed:\n{done.stderr[-2000:]}")


@contextmanager
def locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is building ({path})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
