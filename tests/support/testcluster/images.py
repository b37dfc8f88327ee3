"""Images without a registry and without a build: archives that Python writes and containerd reads.

Pods of the tests need a large Python environment. Copying 6 GB into an image and onto every node takes minutes.
Instead, the image `HOST` is empty except for the links of a merged /usr, and the pod mounts /usr, the Python
installation and the virtual environment of this machine, read-only, at their own paths.
"""

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAUSE = "finetune.test/pause:1"
HOST = "finetune.test/host:1"
"""Use it with imagePullPolicy Never and the mounts of `host_volume`."""

ROOT = Path(__file__).parents[3]
MERGED = ("bin", "sbin", "lib", "lib64")
MOUNT_POINTS = ("dev", "etc", "mnt", "proc", "run", "sys", "tmp", "usr", "var", "var/run", "var/tmp")
FILES = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nfinetune:x:1000:1000::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\nfinetune:x:1000:\n",
    "etc/nsswitch.conf": "hosts: files dns\npasswd: files\ngroup: files\n",
}


def file_entry(name: str, content: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    return entry, content


def folder_entry(name: str) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
    return entry, b""


def link_entry(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
    return entry, b""


def tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for entry, content in entries:
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def archive(tag: str, layer: bytes, config: Mapping[str, Any]) -> bytes:
    """A docker-archive of one layer."""
    digest = hashlib.sha256(layer).hexdigest()
    described = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    encoded = json.dumps(described).encode()
    name = f"{hashlib.sha256(encoded).hexdigest()}.json"
    index = [{"Config": name, "RepoTags": [tag], "Layers": [f"{digest}.tar"]}]
    files = (file_entry(name, encoded), file_entry(f"{digest}.tar", layer))
    return tar([*files, file_entry("manifest.json", json.dumps(index).encode())])


def pause_image(program: Path) -> bytes:
    return archive(PAUSE, tar([file_entry("pause", program.read_bytes(), 0o755)]), {"Entrypoint": ["/pause"]})


def host_image(name: str = HOST) -> bytes:
    entries = [
        *(folder_entry(name) for name in MOUNT_POINTS),
        *(link_entry(name, f"usr/{name}") for name in MERGED if Path("/", name).is_symlink()),
        *(file_entry(name, text.encode()) for name, text in FILES.items()),
    ]
    return archive(name, tar(entries), {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "WorkingDir": "/tmp"})


def host_paths(*more: Path) -> list[Path]:
    """Paths of this machine that a pod needs to run this Python with our packages; none of them contains another."""
    python = Path(sys.executable).resolve().parents[1]
    ours = (ROOT / "operator", ROOT / "trainer")
    alternatives = Path("/etc/alternatives")  # target of Debian's links in /usr
    paths = (Path("/usr"), alternatives, python, Path(sys.base_prefix), Path(sys.prefix), *ours, *more)
    wanted = {path.absolute() for path in paths if path.exists()}
    return sorted(path for path in wanted if not any(other in path.parents for other in wanted))


def host_volume(*more: Path, claim: str = "") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The volume of a pod and the mounts of its container: `host_paths`, read-only.

    With a claim on the storage of `host_claim`, also if Pod Security forbids a hostPath.
    """
    source = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"hostPath": {"path": "/"}}
    mounts = [
        # The mount path may contain links; the subPath of the volume must not.
        {"name": "host", "mountPath": str(path), "subPath": str(path.resolve())[1:], "readOnly": True}
        for path in host_paths(*more)
    ]
    return {"name": "host"} | source, mounts


def host_claim(namespace: str, name: str = "host", folder: Path | None = None) -> list[dict[str, Any]]:
    """A persistent volume with this machine's files (or a writable folder), and the claim `name` for it.

    The caller must delete the volume.
    """
    volume = f"{name}-{namespace}"
    shared = {"accessModes": ["ReadWriteMany" if folder else "ReadOnlyMany"], "storageClassName": ""}
    spec = shared | {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(folder or "/")}}
    claim = shared | {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": volume}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": spec | {"claimRef": {"namespace": namespace, "name": name}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": claim,
        },
    ]
