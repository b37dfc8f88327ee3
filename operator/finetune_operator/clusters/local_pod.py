"""One pod as a local process group: the container's command and environment, with its mounts as folders."""

import asyncio
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api import constants
from finetune_api.clock import rfc3339, utc_now
from finetune_api.constants import Env
from finetune_api.progress import MAX_TERMINATION_BYTES

from ..manifests import Manifest

_PR_SET_PDEATHSIG = 1
_FALLBACK_BYTES, _FALLBACK_LINES = 2048, 80
"""What a kubelet takes from the log of a container that failed without a termination message."""
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class PodPlace:
    """Where a local pod lives."""

    folder: Path
    """Its own folder: config, scratch, termination message."""
    log: Path
    environ: Mapping[str, str]
    """What every local pod inherits: the user's environment, storage credentials, the node's cache."""
    rendezvous_port: int
    progress_port: int


class LocalPod:
    """A pod of an Indexed Job. `manifest()` shows it as a kubelet would."""

    def __init__(self, job: Manifest, index: int, config: Mapping[str, str], place: PodPlace) -> None:
        self._job, self._index, self._place, self._config = job, index, place, config
        self.name = f"{job['metadata']['name']}-{index}"
        self.progress_port = place.progress_port
        self._process: asyncio.subprocess.Process | None = None
        self._started = ""
        self._terminated: dict[str, Any] | None = None
        self._end = asyncio.Event()

    @property
    def ended(self) -> bool:
        """True once its process is gone."""
        return self._terminated is not None

    async def run(self) -> int:
        """Start the process and wait for its end; its exit status, 128 + n for signal n."""
        container = self._job["spec"]["template"]["spec"]["containers"][0]
        mounts = self._mount(container)
        self._place.log.parent.mkdir(parents=True, exist_ok=True)
        self._started = rfc3339(utc_now())
        with self._place.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable if word == "python" else _moved(word, mounts) for word in container["command"]),
                env=self._environment(container, mounts),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        status = await self._process.wait()
        code = 128 - status if status < 0 else status
        self._terminated = {
            "exitCode": code,
            "finishedAt": rfc3339(utc_now()),
            "startedAt": self._started,
            "message": self._last_word(has_failed=code != 0),
        }
        shutil.rmtree(self._place.folder, ignore_errors=True)
        self._end.set()
        return code

    async def wait(self) -> None:
        """Until its process is gone."""
        await self._end.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the pod's first process, as a kubelet does."""
        if self._process is not None and not self.ended:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return  # it has just ended

    def manifest(self) -> Manifest:
        """The pod as an API object."""
        state = {"terminated": self._terminated} if self._terminated else {"running": {"startedAt": self._started}}
        phase = "Running"
        if self._terminated:
            phase = "Failed" if self._terminated["exitCode"] else "Succeeded"
        return pod_manifest(self._job, self._index, phase, state)

    def _last_word(self, *, has_failed: bool) -> str:
        """The termination message; as under FallbackToLogsOnError, the log's tail where a failed pod has left none."""
        if message := _end_of(self._termination_log, MAX_TERMINATION_BYTES):
            return message
        if not has_failed:
            return ""
        lines = _end_of(self._place.log, _FALLBACK_BYTES).splitlines(keepends=True)
        return "".join(lines[-_FALLBACK_LINES:])

    @property
    def _termination_log(self) -> Path:
        return self._place.folder / "termination-log"

    def _mount(self, container: Manifest) -> dict[str, Path]:
        """Volumes as folders: mount path -> folder. Shared memory needs none, the machine's own is there."""
        mounts: dict[str, Path] = {}
        for mount in container["volumeMounts"]:
            if mount["mountPath"].startswith("/dev/"):
                continue
            folder = self._place.folder / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = folder
        for name, text in self._config.items():
            (mounts[constants.CONFIG_MOUNT] / name).write_text(text)
        return mounts

    def _environment(self, container: Manifest, mounts: dict[str, Path]) -> dict[str, str]:
        own = {entry["name"]: self._value(entry, mounts) for entry in container["env"]}
        # Every pod has the machine's one address, so what a pod could fix is told from outside.
        local = {
            Env.MASTER_ADDR: "127.0.0.1",
            Env.MASTER_PORT: str(self._place.rendezvous_port),
            Env.PROGRESS_HOST: "127.0.0.1",
            Env.PROGRESS_PORT: str(self._place.progress_port),
            Env.TERMINATION_LOG: str(self._termination_log),
        }
        return {**self._place.environ, **own, **{str(name): value for name, value in local.items()}}

    def _value(self, entry: Manifest, mounts: dict[str, Path]) -> str:
        if "value" in entry:
            return _moved(entry["value"], mounts)
        # The pod's index is the only reference that a local run accepts; `rules.cluster_only` refuses Secrets.
        assert "fieldRef" in entry["valueFrom"], f"{entry['name']}: no local pod can look up {entry['valueFrom']}"
        return str(self._index)


def _end_of(path: Path, most_bytes: int) -> str:
    """The last bytes of a file, as a kubelet takes them; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            return file.read(most_bytes).decode(errors="replace")
    except OSError:
        return ""


def pod_manifest(
    job: Manifest, index: int, phase: str, state: Manifest, conditions: tuple[Manifest, ...] = ()
) -> Manifest:
    """A pod of an Indexed Job as an API object."""
    name = job["metadata"]["name"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-{index}",
            "namespace": job["metadata"]["namespace"],
            "labels": {**job["spec"]["template"]["metadata"]["labels"], constants.LABEL_JOB_NAME: name},
            "annotations": {constants.COMPLETION_INDEX: str(index)},
            "ownerReferences": [
                {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": name,
                    "uid": job["metadata"]["uid"],
                    "controller": True,
                }
            ],
        },
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": [{"name": constants.TRAINER_CONTAINER, "state": state}],
        },
    }


def _moved(text: str, mounts: dict[str, Path]) -> str:
    for path, folder in mounts.items():
        if text == path or text.startswith(path + "/"):
            return str(folder) + text[len(path) :]
    return text


def _die_with_parent() -> None:
    """Runs in the child before exec: no pod outlives the command that runs it, however that command ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
