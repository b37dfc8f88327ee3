"""A pod as a local process group, with the command and environment of the container, and folders as mounts."""

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
"""Part of the log that a kubelet uses for a container that failed without a termination message."""
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class PodPlace:
    """Folders, ports and environment of a local pod."""

    folder: Path
    """Folder of the pod: configuration, scratch, termination message."""
    log: Path
    environ: Mapping[str, str]
    """Environment of all local pods: that of the user, storage credentials, and the cache."""
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
        """Whether its process has ended."""
        return self._terminated is not None

    async def run(self) -> int:
        """Start the process and wait until it ends. Returns the exit status, 128 + n for signal n."""
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
            "message": self._termination_message(has_failed=code != 0),
        }
        shutil.rmtree(self._place.folder, ignore_errors=True)
        self._end.set()
        return code

    async def wait(self) -> None:
        """Wait until its process has ended."""
        await self._end.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the pod's first process, as a kubelet does."""
        if self._process is not None and not self.ended:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return  # it has just exited

    def manifest(self) -> Manifest:
        """The pod as an API object."""
        state = {"terminated": self._terminated} if self._terminated else {"running": {"startedAt": self._started}}
        phase = "Running"
        if self._terminated:
            phase = "Failed" if self._terminated["exitCode"] else "Succeeded"
        return pod_manifest(self._job, self._index, phase, state)

    def _termination_message(self, *, has_failed: bool) -> str:
        """The termination message; as under FallbackToLogsOnError, the end of the log if a failed pod has none."""
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
        """Volumes as folders: mount path -> folder. Shared memory uses that of the machine."""
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
        # All pods share the address of the machine, so each needs its own ports.
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
        # The index of the pod is the only reference in a local run; `rules.cluster_only` rejects Secrets.
        assert "fieldRef" in entry["valueFrom"], f"{entry['name']}: must not use {entry['valueFrom']} in a local pod"
        return str(self._index)


def _end_of(path: Path, most_bytes: int) -> str:
    """Return the last bytes of a file; empty if it does not exist."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
            return file.read(most_bytes).decode(errors="replace")
    except OSError:
        return ""


def pod_manifest(
    job: Manifest, index: int, phase: str, state: Manifest, conditions: tuple[Manifest, ...] = ()
) -> Manifest:
    """Return a pod of an Indexed Job as an API object."""
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
    """Run in the child before exec, so that pods end with the command that runs them, even if it is killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)
