"""`spec.stages`: the pods of the prepare and evaluate stages. `spec.workers` describes those of training."""

from typing import Annotated

from pydantic import Field

from .base import ApiModel
from .pod import PodSettings
from .scope import Scope


class StagePod(PodSettings, scope=Scope.ATTEMPT):
    """The pod of a stage. It does not inherit the workers' settings of the same names."""


class EvaluatePod(StagePod, scope=Scope.ATTEMPT):
    """The pod of the evaluate stage."""

    gpus: Annotated[int, Field(ge=0, le=1)] | None = None
    """GPUs of the pod. A pod with a GPU runs on the nodes of the workers: it also has their node selector and
    tolerations, and their runtimeClassName and affinity.nodeAffinity unless it has its own. Absent: 1 if the workers
    have GPUs and the evaluation would take more than about ten minutes on a CPU, else 0."""


class Stages(ApiModel, scope=Scope.ATTEMPT):
    """Pods of prepare and evaluate. Image, pull secrets, service account, priority class, `env`, shared memory and
    cache are those of the workers."""

    prepare: StagePod = StagePod()
    """The pod of the prepare stage, which needs no GPU."""

    evaluate: EvaluatePod = EvaluatePod()
    """The pod of the evaluate stage."""
