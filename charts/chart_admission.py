"""The job policy as a ValidatingAdmissionPolicy: a template of the Helm chart. `make golden` writes it.

The rules are those that the operator checks (`finetune_operator.job_policy.rules`), except for labels of other objects,
which an admission policy cannot read, and for values below free-form fields.
"""

import json
from collections.abc import Iterator

from finetune_api.constants import GROUP, PLURAL, VERSION
from finetune_operator.job_policy.rules import RULES, Defaults, Rule

_IMAGE = 'include "finetune-operator.image" (list $ $.Values.trainerImage)'
_DEFAULTS = Defaults(
    image=_IMAGE,
    endpoint="$.Values.storage.endpoint",
    service_account='"default"',
    scheduler='"default-scheduler"',
)
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
    rules = (rule for rule in RULES if rule.is_in_admission_policy)
    return "".join([head, *(line for rule in rules for line in _validation(rule)), _TAIL])


def _validation(rule: Rule) -> Iterator[str]:
    if rule.without_field is None:
        yield f'  {{{{- if not (kindIs "invalid" .{rule.policy_field}) }}}}\n'
    yield f"  - expression: |-\n      {_expression(rule)}\n"
    paths = " and ".join(path.partition("{")[0] for path in rule.paths)
    text = json.dumps(f"{paths} {rule.requirement(', '.join(rule.fixed) or '%s')}")
    listed = f'(join ", " {_entries(rule)} | default "none")' if "%s" in text else ""
    yield f"    message: {{{{ printf {text} {listed} | toJson }}}}\n" if listed else f"    message: {text}\n"
    if rule.without_field is None:
        yield "  {{- end }}\n"


def _entries(rule: Rule) -> str:
    """Return the expression of Helm for the entries of the field."""
    field = f".{rule.policy_field}"
    if rule.without_field is None:
        return field
    listed = " ".join(["list", *(json.dumps(entry) for entry in rule.without_field)])
    return f'(ternary ({listed}) {field} (kindIs "invalid" {field}))'


def _expression(rule: Rule) -> str:
    """Return the CEL of a rule. An update that does not change the fields is admitted, so that a job that was created
    before can be suspended; the operator starts nothing for it."""
    places = [place for path in rule.paths for place in _compared(path)]
    unchanged = " && ".join(f"{_optional('object', place)} == {_optional('oldObject', place)}" for place in places)
    checks = " && ".join(f"({_all_below('object', path, rule)})" for path in rule.paths)
    return f"oldObject != null && {unchanged} || {checks}"


def _compared(path: str) -> list[str]:
    """Return the paths to compare in an update: the first list, or the fields at the end."""
    first, brackets, _ = path.partition("[]")
    place, _, fields = first.partition("{")
    names = [] if brackets else fields.removesuffix("}").split(",") if fields else []
    return [f"{place}.{name}" for name in names if name] or [place]


def _optional(node: str, path: str) -> str:
    """Return the CEL of the value at a path as an optional value."""
    return node + "".join(f".?{name}" for name in path.split(".") if name)


def _all_below(node: str, path: str, rule: Rule, depth: int = 0) -> str:
    """Return CEL: whether all values at a path are admitted."""
    first, brackets, rest = path.partition("[]")
    if not brackets:
        place, braces, fields = first.partition("{")
        value = _optional(node, place)
        if braces:
            return _all_fields(value, fields.removesuffix("}"), rule)
        if rule.absent is not None:
            return f"[{value}.orValue('{rule.absent}')].all(value, {_admitted(rule)})"
        return f"!{value}.hasValue() || [{value}.value()].all(value, {_admitted(rule)})"
    value = _optional(node, first)
    if not rest:
        return f"{value}.orValue([]).all(value, {_admitted(rule)})"
    entry = f"entry{depth}"
    return f"{value}.orValue([]).all({entry}, {_all_below(entry, rest.removeprefix('.'), rule, depth + 1)})"


def _all_fields(node: str, fields: str, rule: Rule) -> str:
    """Return CEL: whether the names of all fields that are set, or of all keys of a map, are admitted."""
    if not fields:
        return f"{node}.orValue({{}}).all(value, {_admitted(rule)})"
    # The schema has a default for some of the fields, which is therefore always there.
    names = ", ".join(
        f"(!{node}.?{name}.hasValue() || dyn({node}.?{name}.value()) in [dyn(false), dyn([])] ? '' : '{name}')"
        for name in fields.split(",")
    )
    return f"[{names}].all(value, value == '' || {_admitted(rule)})"


def _admitted(rule: Rule) -> str:
    """Return CEL: whether the variable `value` is admitted."""
    entries = json.dumps(rule.fixed) if rule.fixed else f"{{{{ toJson {_entries(rule)} }}}}"
    is_listed = f"{entries}.exists(entry, {rule.match.cel})"
    if rule.is_refusal:
        return f"!{is_listed}"
    default = rule.default(_DEFAULTS)
    return f"value == {{{{ {default} | toJson }}}} || {is_listed}" if default else is_listed
