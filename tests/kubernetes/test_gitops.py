"""What GitOps tools see of a job: no difference after an apply."""

from pathlib import Path

import pytest

from process_support import ROOT
from testcluster.access import Kubectl

SAMPLES = sorted((ROOT / "manifests/samples").glob("*.yaml"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("options", [(), ("--server-side",)], ids=["client-side", "server-side"])
def test_after_an_apply_the_object_does_not_differ(
    admin: Path, kubectl: Kubectl, sample: Path, options: tuple[str, ...]
) -> None:
    """Otherwise Argo CD would report it as OutOfSync, and Flux would apply it again and again."""
    assert admin, "the CRD is installed"
    kubectl("apply", *options, "-f", str(sample))
    done = kubectl.run("diff", *options, "-f", str(sample))
    assert (done.returncode, done.stdout) == (0, "")
