"""What kubectl and GitOps tools report about the health of FineTuneJobs, computed by their own libraries."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finetune_api.constants import ConditionType, Phase, Reason
from process_support import ROOT

GITOPS = ROOT / "manifests/gitops"
HEALTH_KEY = "resource.customizations.health.finetune.dev_FineTuneJob"
MUST_ACT = frozenset(
    {
        *(Reason.INVALID_SPEC, Reason.CANNOT_CREATE, Reason.CHILD_CONFLICT, Reason.DEADLINE_EXCEEDED),
        *(Reason.PREPARE_FAILED, Reason.EVALUATE_FAILED, Reason.PERMANENT_FAILURE, Reason.REPEATED_FAILURE),
        *(Reason.RESTARTS_EXHAUSTED, Reason.DISRUPTIONS_EXHAUSTED),
    }
)
"""Reasons for which a person must act."""

Manifest = Mapping[str, Any]


class Verdicts(NamedTuple):
    """Health of one object."""

    kstatus: str
    flux: str
    """Flux with the `healthCheckExprs` of manifests/gitops."""
    argo_cd: str
    """Argo CD with the Lua script of manifests/gitops."""


IN_PROGRESS = Verdicts("InProgress", "InProgress", "Progressing")
CURRENT = Verdicts("Current", "Current", "Healthy")
FAILED = Verdicts("Failed", "Failed", "Degraded")
SUSPENDED = Verdicts("InProgress", "InProgress", "Suspended")
"""kstatus has no status for it; like for a suspended batch/v1 Job, the result is still to come."""

OF_PHASE = dict.fromkeys(Phase, IN_PROGRESS) | {
    Phase.SUSPENDED: SUSPENDED,
    Phase.SUCCEEDED: CURRENT,
    Phase.FAILED: FAILED,
    Phase.INVALID: FAILED,
}


@dataclass(frozen=True)
class Reported:
    """Verdicts and messages of kstatus and Argo CD."""

    verdicts: Verdicts
    kstatus_message: str
    argo_cd_message: str


@dataclass(frozen=True)
class HealthTools:
    """The program tests/kubernetes/health, with the health checks of manifests/gitops."""

    program: Path
    folder: Path
    """For its input files."""

    def report(self, objects: Iterable[Manifest], **changed: str) -> list[Reported]:
        """What the tools report about each of the objects, in one process; with other expressions for Flux."""
        script, expressions = self.folder / "health.lua", self.folder / "expressions.yaml"
        script.write_text(yaml.safe_load((GITOPS / "argo-cd/argocd-cm.yaml").read_text())["data"][HEALTH_KEY])
        _source, kustomization = yaml.safe_load_all((GITOPS / "flux/production.yaml").read_text())
        (check,) = kustomization["spec"]["healthCheckExprs"]
        expressions.write_text(yaml.safe_dump(check | changed))
        command = [self.program, script, expressions]
        lines = "".join(json.dumps(one) + "\n" for one in objects)
        done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return [
            Reported(
                Verdicts(found["kstatus"]["status"], found["flux"]["status"], found["argoCD"]["status"]),
                found["kstatus"]["message"],
                found["argoCD"]["message"],
            )
            for found in map(json.loads, done.stdout.splitlines())
        ]

    def check(self, objects: Iterable[Manifest]) -> None:
        """Raise AssertionError if a verdict is not the one that the status of the object requires."""
        objects = list(objects)
        wrong = []
        for one, reported in zip(objects, self.report(objects), strict=True):
            if reported.verdicts != (expected := expected_verdicts(one)) or not _is_consistent(one, expected):
                wrong.append(f"{reported}, expected {expected}:\n{json.dumps(one['status'], indent=1)}")
        assert not wrong, f"{len(wrong)} of {len(objects)}:\n" + "\n".join(wrong[:3])


def expected_verdicts(job: Manifest) -> Verdicts:
    """Verdicts that follow from generation, phase, Stalled and a change that is not in effect yet."""
    held = _held(job)
    if job["status"]["observedGeneration"] != job["metadata"]["generation"]:
        return IN_PROGRESS
    if ConditionType.STALLED in held:
        return FAILED
    if held.get(ConditionType.RECONCILING, {}).get("reason") == Reason.NEXT_ATTEMPT:
        return IN_PROGRESS  # with updatePolicy Ignore, the phase can be that of the run before the change
    return OF_PHASE[Phase(job["status"]["phase"])]


def _is_consistent(job: Manifest, verdicts: Verdicts) -> bool:
    """Whether the conditions justify the verdicts: a model exists, or a person must act."""
    held = _held(job)
    if ConditionType.RECONCILING in held and ConditionType.STALLED in held:
        return False
    if ConditionType.STALLED in held and held[ConditionType.STALLED]["reason"] not in MUST_ACT:
        return False
    return verdicts is not CURRENT or {ConditionType.COMPLETE, ConditionType.MODEL_AVAILABLE} <= held.keys()


def _held(job: Manifest) -> dict[str, Manifest]:
    return {one["type"]: one for one in job["status"].get("conditions", ()) if one["status"] == "True"}
