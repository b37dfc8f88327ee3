"""An existing cluster that `FINETUNE_TEST_KUBECONFIG` names: used without changes, and restored afterwards."""

import os
import shutil
from pathlib import Path

from . import binaries
from .access import Kubectl, service_account_kubeconfig


class ExistingCluster:
    """The parts of `ControlPlane` that tests use, without its users, because that cluster manages its own."""

    network = None

    def __init__(self, kubeconfig: Path, folder: Path, say: binaries.Say = print) -> None:
        self.folder = folder
        self.say = say
        found = shutil.which("kubectl")
        program = Path(found) if found else binaries.built(binaries.KUBERNETES, say) / "kubectl"
        self.kubectl = Kubectl(program, kubeconfig, folder / "kubectl")
        say(f"tests use the cluster of {kubeconfig}: {self.kubectl('version').splitlines()[-1]}")

    @classmethod
    def named(cls, folder: Path, say: binaries.Say = print) -> "ExistingCluster | None":
        path = os.environ.get("FINETUNE_TEST_KUBECONFIG")
        return cls(Path(path), folder, say) if path else None

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        path = self.folder / "kubeconfigs" / f"{namespace}-{name}"
        return service_account_kubeconfig(self.kubectl, path, namespace, name)
