"""`spec.stages`: the pods of the prepare and evaluate stages. `spec.workers` describes those of training."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel
from .scope import Scope
from .workers import Resources, Toleration


class StagePod(ApiModel, scope=Scope.ATTEMPT):
    """The pod of a stage. It does not inherit the workers' resources, node selector and tolerations."""

    resources: Resources = Resources()
    """Requests and limits. Absent: requests for one CPU, and for the memory that the stage needs."""

    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] = {}
    """Labels that the node must have."""

    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints of nodes that the pod tolerates."""


class EvaluatePod(StagePod, scope=Scope.ATTEMPT):
    """The pod of the evaluate stage."""

    gpus: Annotated[int, Field(ge=0, le=1)] | None = None
    """GPUs of the pod. A pod with a GPU also has the workers' node selector and tolerations. Absent: 1 if the workers
    have GPUs and the evaluation would take more than about ten minutes on a CPU, else 0."""


class Stages(ApiModel, scope=Scope.ATTEMPT):
    """Pods of prepare and evaluate. Images, service account, environment and cache are those of the workers."""

    prepare: StagePod = StagePod()
    """The pod of the prepare stage, which needs no GPU."""

    evaluate: EvaluatePod = EvaluatePod()
    """The pod of the evaluate stage."""
