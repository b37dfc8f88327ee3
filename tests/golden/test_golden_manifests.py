"""Golden files: the manifests of a job in a cluster, the CRD, the support table.

`make golden` updates them; review the diff.
"""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from finetune_api.crd import crd
from finetune_api.support import SUPPORT
from finetune_api.validation import parse_job
from finetune_operator.__main__ import main as operator_main
from finetune_operator.render import render_all
from finetune_operator.settings import OperatorSettings
from finetune_operator.yaml_text import dump_all
from golden import same_as_golden

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SAMPLES = sorted((ROOT / "manifests/samples").glob("*.yaml"))
CASES = sorted(path for path in HERE.iterdir() if (path / "job.yaml").exists())


def read(path: Path) -> object:
    return YAML(typ="safe", pure=True).load(path)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_a_cluster_gets_exactly_these_manifests(case: Path) -> None:
    job = parse_job(read(case / "job.yaml"))  # type: ignore[arg-type]
    same_as_golden(case / "manifests.yaml", dump_all(render_all(job, OperatorSettings())))


def test_the_crd_in_manifests_is_that_of_the_models() -> None:
    same_as_golden(ROOT / "manifests/crds/finetunejobs.yaml", dump_all([crd()]))


def test_the_page_of_supported_combinations_is_that_of_the_table() -> None:
    same_as_golden(ROOT / "docs/support.md", SUPPORT.page())


def test_the_network_policy_in_manifests_is_what_the_operator_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert operator_main(["network-policy"]) == 0
    same_as_golden(ROOT / "manifests/network-policy.yaml", capsys.readouterr().out)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_valid_on_a_cluster(sample: Path) -> None:
    parse_job(read(sample))  # type: ignore[arg-type]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_samples_are_the_same_for_a_yaml_1_2_parser_and_for_kubectl(sample: Path) -> None:
    """kubectl reads YAML through JSON: the values must be unchanged by that."""
    import json

    manifest = read(sample)
    assert json.loads(json.dumps(manifest)) == manifest


def test_the_readme_shows_the_quickstart_file() -> None:
    quickstart = (ROOT / "manifests/samples/quickstart.yaml").read_text()
    assert quickstart in (ROOT / "README.md").read_text()
    assert len(quickstart.splitlines()) <= 21
