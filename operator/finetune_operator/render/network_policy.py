"""NetworkPolicies of trainer pods."""

from finetune_api import constants

from ..manifests import Manifest

NAMESPACE = "finetune-system"
"""Namespace of the operator in manifests/install.yaml."""
_OPERATOR = {"app.kubernetes.io/name": "finetune-operator"}
"""A label that the chart gives to the operator's pod."""

LIMITS = """\
# Separates the trainer pods of this namespace from all other pods but the operator, and not from each other: every
# trainer pod of the namespace may connect to all ports of every other one, whatever its job or stage. A selector of a
# NetworkPolicy is compared with fixed values, and cannot mean "pods with the same label as the selected pod", so one
# policy cannot separate jobs that do not exist yet. To separate jobs, do not apply this file, because policies are
# additive. Set the chart's value networkPolicies.jobs.create (flag --network-policies-from): the operator then creates
# a policy for each attempt.
"""
"""What the policy of `render_network_policy` does not do, as comments."""


def network_policy_spec(pods: Manifest, operator_namespace: str) -> Manifest:
    """Return the spec of a policy that allows traffic among these pods, and from the operator to their progress."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": _OPERATOR},
    }
    return {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": pods}]},
            {"from": [operator], "ports": [{"protocol": "TCP", "port": constants.PROGRESS_PORT}]},
        ],
    }


def render_network_policy(operator_namespace: str) -> Manifest:
    """Return a policy that allows traffic among the trainer pods of a namespace, and from the operator to their
    progress. It is applied manually, once per namespace with jobs, and does not separate jobs: see LIMITS.
    """
    trainers = {"matchLabels": {constants.LABEL_MANAGED_BY: constants.MANAGED_BY}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "finetune-trainers", "labels": dict(_OPERATOR)},
        "spec": network_policy_spec(trainers, operator_namespace),
    }
