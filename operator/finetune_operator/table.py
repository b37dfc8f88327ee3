"""What the watches have shown last of every FineTuneJob: enough to know which ones need no look."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.constants import TERMINAL_CONDITIONS

from .manifests import JobKey, Manifest


@dataclass(frozen=True)
class Seen:
    """One object, as last shown."""

    resource_version: str
    rests: bool
    """Over, told so for this generation, and nothing is due later."""


class JobTable:
    """FineTuneJobs by key. Not the truth: decisions are made on live reads."""

    def __init__(self) -> None:
        self._seen: dict[JobKey, Seen] = {}
        self._written: dict[JobKey, str] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def show(self, key: JobKey, body: Manifest) -> bool:
        """Note what a watch has shown; whether the object needs a look. Our own last write needs none."""
        version = str(body["metadata"].get("resourceVersion", ""))
        seen = self._seen[key] = Seen(version, rests(body))
        return not seen.rests and self._written.get(key) != version

    def wrote(self, key: JobKey, resource_version: str) -> None:
        """We have written this version ourselves, and know what comes next."""
        self._written[key] = resource_version

    def remove(self, key: JobKey) -> None:
        """The object is gone."""
        self._seen.pop(key, None)
        self._written.pop(key, None)

    def rests(self, key: JobKey) -> bool:
        """Whether an event about a child may be passed over. One that is not shown yet gets its look when it is."""
        seen = self._seen.get(key)
        return seen is None or seen.rests

    def missed(self, listed: dict[JobKey, str]) -> tuple[JobKey, ...]:
        """Keys of a live list (key -> resource version) that the watches show otherwise, or still show though gone."""
        shown = {key: seen.resource_version for key, seen in self._seen.items()}
        return tuple(key for key in {**shown, **listed} if shown.get(key) != listed.get(key))


def tells_of_an_end(event: str | None, job: Mapping[str, Any]) -> bool:
    """Whether an event about a child has news: it is over, going or gone. How far it has come is asked by time."""
    conditions = (job.get("status") or {}).get("conditions") or []
    over = any(entry["type"] in {"Complete", "Failed"} and entry["status"] == "True" for entry in conditions)
    return over or event == "DELETED" or "deletionTimestamp" in job["metadata"]


def rests(body: Manifest) -> bool:
    """The run is over, its status speaks of this very spec, and no time to live runs."""
    status = body.get("status") or {}
    over = any(
        entry.get("type") in TERMINAL_CONDITIONS and entry.get("status") == "True"
        for entry in status.get("conditions") or []
    )
    told = status.get("observedGeneration") == body["metadata"].get("generation")
    return over and told and body.get("spec", {}).get("ttlSecondsAfterFinished") is None
