"""The CRD as a template of the Helm chart. `make golden` writes it."""

from finetune_api.crd import crd
from finetune_operator.yaml_text import dump_all


def crd_template() -> str:
    """Return templates/crd.yaml.

    Helm never upgrades files in a folder `crds/`, so the CRD is a template; the annotation keeps it, and with it all
    jobs, when the release is uninstalled.
    """
    manifest = crd()
    manifest["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    text = dump_all([manifest]).replace("{{", '{{ "{{" }}')
    return f"{{{{- if .Values.crd.install }}}}\n{text}{{{{- end }}}}\n"
