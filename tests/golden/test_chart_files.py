"""Files of the chart that are generated: values.yaml and values.schema.json from one model, the CRD's template, and the
template of the admission policy."""

from pathlib import Path

from ruamel.yaml import YAML

import chart_admission
import chart_crd
import chart_values
from golden import same_as_golden

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/finetune-operator"
HEALTH_KEY = "resource.customizations.health.finetune.dev_FineTuneJob"


def test_the_values_of_the_chart_are_those_of_the_model() -> None:
    same_as_golden(CHART / "values.yaml", chart_values.values_text())
    values = YAML(typ="safe", pure=True).load(CHART / "values.yaml")
    defaults = chart_values.ChartValues()
    assert values == defaults.model_dump(mode="json", by_alias=True)
    assert chart_values.ChartValues.model_validate(values, by_alias=True) == defaults


def test_the_schema_of_the_values_is_that_of_the_model() -> None:
    same_as_golden(CHART / "values.schema.json", chart_values.schema_text())


def test_every_value_has_a_comment_and_all_fit_into_200_lines() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    assert len(lines) < 200
    keys = [index for index, line in enumerate(lines) if line.strip() and not line.lstrip().startswith("#")]
    assert [lines[index] for index in keys if not lines[index - 1].lstrip().startswith("#")] == []


def test_the_crd_in_the_chart_is_the_one_of_the_models() -> None:
    same_as_golden(CHART / "templates/crd.yaml", chart_crd.crd_template())


def test_the_health_check_in_the_chart_is_the_one_for_argo_cd() -> None:
    manifest = YAML(typ="safe", pure=True).load(ROOT / "manifests/gitops/argo-cd/argocd-cm.yaml")
    same_as_golden(CHART / "files/argo-cd-health.lua", manifest["data"][HEALTH_KEY])


def test_the_admission_policy_in_the_chart_has_the_rules_of_the_operator() -> None:
    same_as_golden(CHART / "templates/admission-policy.yaml", chart_admission.admission_template())
