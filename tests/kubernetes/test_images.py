"""The images built from the Dockerfile, and the operator's image in a cluster installed with manifests/install.yaml.

They are really built, with packages from the package index, on a base image of this machine's Python. All steps of the
trainer's image are built, but with the operator's packages, because its own packages are 6 GB and take minutes, and
without the Debian packages, because the base image has no apt-get. Their installation is not tested here (`make images`
does it).
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import make_job
from finetune_api.crd import crd
from operator_process import NAME, events_of, install, installation
from process_support import ROOT
from testcluster.access import Kubectl, condition
from testcluster.builds import BASE, Buildah
from testcluster.pod_manifests import python_pod
from testcluster.pods import PodsCluster
from testcluster.shared_services import answers

NAMESPACE = installation()["Deployment", NAME]["metadata"]["namespace"]
USER = 10001
OWN_MEGABYTES = 120
"""Maximum size of the operator's image without its base, in MB. 90 were measured, mostly the Kubernetes client."""
TOOLS = ("pip", "pip3", "uv", "hatch", "gcc", "cc", "c++", "make")
FIND = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"


def importable(buildah: Buildah, image: str, *names: str) -> list[str]:
    found: list[str] = json.loads(buildah.inside(image, "python", "-c", FIND, *names).replace("'", '"'))
    return found


def on_the_path(buildah: Buildah, image: str, *names: str) -> list[str]:
    return buildah.inside(image, "sh", "-c", f"for name in {' '.join(names)}; do command -v $name; done; true").split()


def test_the_operators_image_runs_it_as_an_unprivileged_user(buildah: Buildah, operator_image: str) -> None:
    config = buildah.described(operator_image)
    assert config["User"] == f"{USER}:{USER}"
    assert (config["Entrypoint"], config["Cmd"]) == (["python", "-m", "finetune_operator"], ["run"])
    assert buildah.inside(operator_image, "id", "-u").strip() == str(USER)
    printed = buildah.inside(operator_image, "python", "-m", "finetune_operator", "crd")
    assert json.loads(printed) == crd()


def test_the_operators_image_has_neither_build_tools_nor_torch(buildah: Buildah, operator_image: str) -> None:
    assert on_the_path(buildah, operator_image, *TOOLS, "python") == ["/venv/bin/python"]
    unwanted = ("pip", "ensurepip", "setuptools", "hatchling", "uv", "torch", "transformers", "boto3", "typer")
    assert importable(buildah, operator_image, *unwanted, "kopf") == ["kopf"]


def test_the_operators_image_is_small(buildah: Buildah, operator_image: str, say: Callable[[str], None]) -> None:
    whole, base = buildah.megabytes(operator_image), buildah.megabytes(BASE)
    say(f"the operator's image: {whole:.0f} MB, {base:.0f} MB of it are the base")
    assert whole - base < OWN_MEGABYTES


def test_a_start_compiles_none_of_our_modules(buildah: Buildah, operator_image: str) -> None:
    """A pod cannot store bytecode: it would compile at every start, and take twice as long."""
    assert compiled_by(buildah, operator_image, "finetune_operator.controller.service") == []


def compiled_by(buildah: Buildah, image: str, module: str) -> list[str]:
    """Files of our environment without bytecode when the module is imported."""
    output = buildah.inside(image, "sh", "-c", f"python -v -c 'import {module}' 2>&1")
    assert module.replace(".", "/") in output
    compiled = re.findall(r"^# code object from '?(/.+\.py)'?$", output, re.MULTILINE)
    return [path for path in compiled if path.startswith("/venv/") and "/client/models/" not in path]


def test_every_step_of_the_trainers_image(buildah: Buildah, tmp_path: Path) -> None:
    """All steps except the installation of its packages, see the module."""
    context = tmp_path / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, context)
    for name in ("operator", "trainer", "manifests", "requirements"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "requirements/operator.txt", context / "requirements/trainer.txt")
    buildah.build("trainer", "trainer", context, "SYSTEM_PACKAGES=")
    config = buildah.described("trainer")
    # The operator's pods specify the command; `python` must be the one with the packages.
    assert (config["User"], config.get("Entrypoint")) == (f"{USER}:{USER}", None)
    assert on_the_path(buildah, "trainer", *TOOLS, "python") == ["/venv/bin/python"]
    assert importable(buildah, "trainer", "finetune_trainer.__main__", "pip") == ["finetune_trainer.__main__"]
    assert compiled_by(buildah, "trainer", "pydantic.main") == []


@pytest.fixture(scope="module")
def installed(pods_cluster: PodsCluster, buildah: Buildah, operator_image: str) -> Iterator[Kubectl]:
    """The operator in its own namespace; returns kubectl for it."""
    archive = buildah.archive(operator_image, operator_image)
    for node in pods_cluster.nodes.values():
        node.load_image(archive)
    kubectl = pods_cluster.control.kubectl.within(NAMESPACE)
    done = kubectl.run("apply", "--server-side", "-f", str(ROOT / "manifests/install.yaml"))
    try:
        assert (done.returncode, done.stderr) == (0, ""), "applied, and without a warning"
        kubectl.until(f"deployment/{NAME}", lambda found: condition(found, "Available") == "True", within=90)
        yield kubectl
    finally:
        # Until its pod has ended, because it would reconcile jobs of other tests.
        kubectl("delete", f"deployment/{NAME}", "--cascade=foreground", "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")
        install(pods_cluster.control)  # the permissions are bound to the account of the other tests' operators


def test_the_installed_operator_reconciles_a_job(installed: Kubectl, kubectl: Kubectl) -> None:
    kubectl.apply(make_job("first", namespace=kubectl.namespace))
    try:
        job = kubectl.until("ftj/first", lambda found: found.get("status", {}).get("phase") == "Preparing", within=30)
        assert condition(job, "Accepted") == "True"
        container = kubectl.json("get", "job/first-r1-prepare-a1")["spec"]["template"]["spec"]["containers"][0]
        assert container["image"] == "finetune-trainer:0.1.0"
        assert [event["reason"] for event in events_of(kubectl, "first")] == ["Preparing"]
    finally:
        kubectl("delete", "ftj/first", "--wait=false")
    (pod,) = installed.json("get", "pods")["items"]
    (status,) = pod["status"]["containerStatuses"]
    assert (status["ready"], status["restartCount"]) == (True, 0), installed("logs", pod["metadata"]["name"])


def test_its_namespace_is_restricted_and_its_pod_is_unprivileged(installed: Kubectl) -> None:
    assert "violates PodSecurity" in (installed.refusal(python_pod("plain", "pass")) or "")
    status = installed("exec", f"deployment/{NAME}", "--", "cat", "/proc/self/status")
    found = dict(line.split(":", 1) for line in status.splitlines())
    assert found["Uid"].split() == [str(USER)] * 4
    assert (found["Seccomp"].strip(), int(found["CapEff"], 16), found["NoNewPrivs"].strip()) == ("2", 0, "1")


def test_its_metrics_are_available_through_a_service(installed: Kubectl) -> None:
    service = installed.json("get", f"service/{NAME}-metrics")["spec"]
    assert answers(f"http://{service['clusterIP']}:{service['ports'][0]['port']}/metrics")


def test_it_ends_on_sigterm_and_another_takes_over(installed: Kubectl) -> None:
    (pod,) = installed.json("get", "pods")["items"]
    started = time.monotonic()
    installed("delete", f"pod/{pod['metadata']['name']}")
    seconds = time.monotonic() - started
    assert seconds < pod["spec"]["terminationGracePeriodSeconds"] / 2, "process 1 heeds SIGTERM"
    installed.until(f"deployment/{NAME}", lambda found: condition(found, "Available") == "True", within=60)
