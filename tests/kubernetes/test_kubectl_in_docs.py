"""Commands of kubectl and manifests in the docs, checked by the real kubectl and the real API server."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from doc_pages import Block, Command, blocks, commands
from testcluster.access import Kubectl
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster

WITH_RESOURCES = frozenset({"delete", "describe", "edit", "get", "label", "patch", "rollout", "wait"})
"""Commands whose first argument is a resource; that of rollout follows its own command."""

GLOBAL = ("-n", "--namespace")


def positional(command: Command) -> list[str]:
    """Words without options; the value of an option counts as a word, except that of the namespace."""
    words = list(command.words[1:])
    for name in GLOBAL:
        if name in words:
            index = words.index(name)
            del words[index : index + 2]
    return [word for word in words if not word.startswith("-")]


@cache
def resources(kubectl: Kubectl) -> frozenset[str]:
    """Names, short names and singular names of the resources of the API server."""

    def names() -> Iterator[str]:
        for line in kubectl("api-resources", "--no-headers").splitlines():
            name, *short, _version, _namespaced, kind = line.split()
            yield from (name, kind.lower(), *",".join(short).split(","))

    return frozenset(names())


@cache
def global_options(kubectl: Kubectl) -> str:
    return kubectl("options")


@pytest.fixture(scope="module")
def shared_kubectl(control_plane: ControlPlane | ExistingCluster, admin: Path, shared_namespace: str) -> Kubectl:
    """kubectl after installing the CRD."""
    assert admin
    return control_plane.kubectl.within(shared_namespace)


@pytest.mark.parametrize("command", commands("kubectl"), ids=str)
def test_kubectl_has_the_command_and_its_options(
    shared_kubectl: Kubectl, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in command.variables:  # they enable options
        monkeypatch.setenv(*variable.split("=", 1))
    words = positional(command)
    shown = shared_kubectl(*words[:3], "--help") + global_options(shared_kubectl)
    assert f"kubectl {words[0]}" in shown
    assert set(command.options) <= set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", shown))
    if words[0] in WITH_RESOURCES:
        named = words[2 if words[0] == "rollout" else 1].partition("/")[0].split(",")
        assert set(named) <= resources(shared_kubectl)


def read(block: Block) -> Any:
    """Read YAML 1.2, as kubectl does: 2e-4 is a number."""
    return YAML(typ="safe", pure=True).load(block.text)


def manifests() -> list[Block]:
    """All but those of Kueue, which test_kueue.py reads with its API."""
    found = [(block, read(block).get("apiVersion", "")) for block in blocks("yaml")]
    return [block for block, version in found if version and not version.startswith("kueue.x-k8s.io/")]


@pytest.mark.parametrize("block", manifests(), ids=str)
def test_the_api_server_accepts_the_manifest(shared_kubectl: Kubectl, block: Block) -> None:
    assert shared_kubectl.refusal(read(block)) is None
