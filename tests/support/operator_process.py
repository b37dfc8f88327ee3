"""The operator of a test: the real process, with exactly the permissions of an installation."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from ruamel.yaml import YAML

from process_support import ROOT, base_environment, free_port, until
from testcluster.access import Kubectl, condition
from testcluster.control_plane import ControlPlane
from testcluster.existing import ExistingCluster

CRD = "finetunejobs.finetune.dev"
NAME = "finetune-operator"
"""Of the objects in manifests/install.yaml."""
ACCOUNTS = "finetune-test-operator"
"""Namespace of the operator's service account, and of its Lease."""
LEASE = f"--lease={ACCOUNTS}/{NAME}"
"""Argument for leader election."""


def install(control: ControlPlane | ExistingCluster) -> None:
    """Install CRD, service account and permissions. Can be repeated."""
    kubectl = control.kubectl
    # By force: after a test of the chart, helm owns its fields.
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "manifests/crds/finetunejobs.yaml"))
    kubectl.until(f"crd/{CRD}", lambda found: condition(found, "Established") == "True", within=120)
    kubectl.until(f"crd/{CRD}", lambda _: kubectl.run("get", "ftj").returncode == 0, within=120)
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": ACCOUNTS}}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ACCOUNTS}}
    installed = installation()
    role, binding = installed["ClusterRole", NAME], installed["ClusterRoleBinding", NAME]
    binding["subjects"][0]["namespace"] = ACCOUNTS
    own = [installed[kind, f"{NAME}-leader-election"] for kind in ("Role", "RoleBinding")]
    for manifest in own:
        manifest["metadata"]["namespace"] = ACCOUNTS
    own[1]["subjects"][0]["namespace"] = ACCOUNTS
    kubectl.within(ACCOUNTS).apply(space, account, role, binding, *own, server_side=True)


def installation() -> dict[tuple[str, str], dict[str, Any]]:
    """(kind, name) -> manifest of manifests/install.yaml, which tests/chart compares with the chart."""
    manifests = YAML(typ="safe", pure=True).load_all(ROOT / "manifests/install.yaml")
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests}


class OperatorProcess:
    """`python -m finetune_operator run`, which can be killed and restarted. A context manager."""

    def __init__(self, control: ControlPlane | ExistingCluster, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = control.service_account_kubeconfig(ACCOUNTS, NAME)
        self.folder, self.arguments = folder, arguments
        self.log = folder / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self, *, server: str | None = None) -> "OperatorProcess":
        """`server`: an alternative address of the API server, such as a proxy."""
        self.port = free_port()
        command = [sys.executable, "-m", "finetune_operator", "run", f"--kubeconfig={self._kubeconfig(server)}"]
        command += ["--host=127.0.0.1", f"--port={self.port}", *self.arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=base_environment(), stdout=log, stderr=log)
        return self

    def _kubeconfig(self, server: str | None) -> Path:
        if server is None:
            return self.kubeconfig
        content: dict[str, Any] = json.loads(self.kubeconfig.read_text())
        content["clusters"][0]["cluster"] = {"server": server}
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps(content))
        return path

    def ready(self) -> "OperatorProcess":
        """Wait until its watches are open."""
        until(lambda: not self.is_running or self.get("/readyz")[0] == 200, within=90, what="the operator is ready")
        assert self.is_running, self.output()
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it is running."""
        return None if self._process is None else self._process.poll()

    def get(self, path: str) -> tuple[int, str]:
        """Return status and text of a response; (0, "") without a response."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status), str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def log_text(self) -> str:
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def kill(self) -> None:
        """Kill it like a lost node."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Stop it like a kubelet does; returns the exit status."""
        return self._end(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> int:
        self.send(number)
        assert self._process is not None
        return self._process.wait(30)

    def __enter__(self) -> "OperatorProcess":
        return self.start().ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running:
            self.kill()


def events_of(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """Events on a FineTuneJob, oldest first."""
    selector = f"involvedObject.name={name},involvedObject.kind=FineTuneJob"
    found = kubectl.json("get", "events", f"--field-selector={selector}")
    return sorted(found["items"], key=lambda event: event["firstTimestamp"])
