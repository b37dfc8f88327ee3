"""The job policy as a ValidatingAdmissionPolicy: a template of the Helm chart. `make golden` writes it.

The rules are those that the operator checks (`finetune_operator.job_policy.rules`), except for labels of other objects,
which an admission policy cannot read.
"""

import json
from collections.abc import Iterator

from finetune_api.constants import GROUP, PLURAL, VERSION
from finetune_operator.job_policy.rules import RULES, Defaults, Rule

_IMAGE = 'include "finetune-operator.image" (list $ $.Values.trainerImage)'
_DEFAULTS = Defaults(image=_IMAGE, endpoint="$.Values.storage.endpoint", service_account='"default"')
"""Expressions of Helm for the defaults of the operator."""

_HEAD = """\
{{- $name := include "finetune-operator.name" . }}
{{- with .Values.jobPolicy }}
{{- if .admission.create }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ $name | quote }}
  labels:
    {{- include "finetune-operator.labels" $ | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
    - apiGroups: [GROUP]
      apiVersions: [VERSION]
      operations: [CREATE, UPDATE]
      resources: [PLURAL]
  validations:
"""
_TAIL = """\
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name | quote }}
  labels:
    {{- include "finetune-operator.labels" $ | nindent 4 }}
spec:
  policyName: {{ $name | quote }}
  validationActions: [Deny]
  {{- with $.Values.namespaces }}
  matchResources:
    namespaceSelector:
      matchExpressions:
      - key: kubernetes.io/metadata.name
        operator: In
        values: {{ toJson . }}
  {{- end }}
{{- end }}
{{- end }}
"""


def admission_template() -> str:
    """Return templates/admission-policy.yaml. A rule is rendered if the values have its field."""
    head = _HEAD.replace("GROUP", GROUP).replace("VERSION", VERSION).replace("PLURAL", PLURAL)
    return "".join([head, *(line for rule in RULES for line in _validation(rule)), _TAIL])


def _validation(rule: Rule) -> Iterator[str]:
    field = f".{rule.policy_field}"
    yield f'  {{{{- if not (kindIs "invalid" {field}) }}}}\n'
    yield f"  - expression: |-\n      {_expression(rule)}\n"
    paths = " and ".join(rule.paths)
    requirement = rule.requirement("%s")
    text = json.dumps(f"{paths} {requirement}")
    listed = f'(join ", " {field} | default "none")' if "%s" in requirement else ""
    yield f"    message: {{{{ printf {text} {listed} | toJson }}}}\n" if listed else f"    message: {text}\n"
    yield "  {{- end }}\n"


def _expression(rule: Rule) -> str:
    """Return the CEL of a rule. An update that does not change the fields is admitted, so that a job that was created
    before can be suspended; the operator starts nothing for it."""
    unchanged = " && ".join(f"{_optional('object', path)} == {_optional('oldObject', path)}" for path in rule.paths)
    checks = " && ".join(f"({_all_below('object', path, rule)})" for path in rule.paths)
    return f"oldObject != null && {unchanged} || {checks}"


def _optional(node: str, path: str) -> str:
    """Return the CEL of the value at a path, up to its first list, as an optional value."""
    return node + "".join(f".?{name}" for name in path.partition("[]")[0].split("."))


def _all_below(node: str, path: str, rule: Rule, depth: int = 0) -> str:
    """Return CEL: whether all values at a path are admitted."""
    first, brackets, rest = path.partition("[]")
    value = _optional(node, first)
    if not brackets:
        if rule.absent is not None:
            return f"[{value}.orValue('{rule.absent}')].all(value, {_admitted(rule)})"
        return f"!{value}.hasValue() || [{value}.value()].all(value, {_admitted(rule)})"
    if not rest:
        return f"{value}.orValue([]).all(value, {_admitted(rule)})"
    entry = f"entry{depth}"
    return f"{value}.orValue([]).all({entry}, {_all_below(entry, rest.removeprefix('.'), rule, depth + 1)})"


def _admitted(rule: Rule) -> str:
    """Return CEL: whether the variable `value` is admitted."""
    entries = json.dumps(rule.refused) if rule.refused else f"{{{{ toJson .{rule.policy_field} }}}}"
    is_listed = f"{entries}.exists(entry, {rule.match.cel})"
    if rule.is_refusal:
        return f"!{is_listed}"
    default = rule.default(_DEFAULTS)
    return f"value == {{{{ {default} | toJson }}}} || {is_listed}" if default else is_listed
