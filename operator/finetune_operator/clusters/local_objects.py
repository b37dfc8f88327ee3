"""Objects of the local cluster, one JSON file each, which later processes can read."""

import json
from pathlib import Path

from finetune_api.files import replace_file

from ..manifests import JobKey, Manifest


class ObjectFolder:
    """The objects that belong to one FineTuneJob, under `<work-dir>/jobs/<namespace>/<name>/objects`."""

    def __init__(self, work_dir: Path, key: JobKey) -> None:
        self.root = work_dir / "jobs" / key.namespace / key.name
        self._folder = self.root / "objects"
        # Only for the owner, because pod templates contain the values of environment variables.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, kind: str, name: str) -> Manifest | None:
        """Return an object, or None."""
        try:
            manifest: Manifest = json.loads(self._path(kind, name).read_text())
        except FileNotFoundError:
            return None
        return manifest

    def list(self, kind: str) -> list[Manifest]:
        """Return all objects of a kind, sorted by name."""
        return [json.loads(path.read_text()) for path in sorted(self._folder.glob(f"{kind}.*.json"))]

    def write(self, manifest: Manifest) -> None:
        """Create or replace an object."""
        path = self._path(manifest["kind"], manifest["metadata"]["name"])
        replace_file(path, json.dumps(manifest, indent=1))

    def remove(self, kind: str, name: str) -> None:
        """Remove an object. Does nothing if it does not exist."""
        self._path(kind, name).unlink(missing_ok=True)

    def _path(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}.{name}.json"
