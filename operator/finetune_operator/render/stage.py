"""The children of one attempt at one stage: ConfigMap, Service, PodGroup, Job."""

from finetune_api import constants
from finetune_api.constants import Stage
from finetune_api.evaluation_needs import EvaluationNeeds
from finetune_api.exit_codes import PERMANENT_EXIT_CODES
from finetune_api.redaction import without_secrets
from finetune_api.stages import STAGES, run_stages
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import FineTuneJob

from .. import names
from ..manifests import Manifest
from ..pod_defaults import filled
from ..policy.pending import attempt_hash, evaluation_hash
from ..policy.runs import run_hash
from ..policy.scale import fewest_workers
from ..policy.world import evaluation_needs, stage_config
from ..settings import OperatorSettings
from .network_policy import network_policy_spec
from .pod import pod_template


def render_stage(
    config: TrainerConfig,
    settings: OperatorSettings,
    *,
    grace_seconds: int | None = None,
    needs: EvaluationNeeds | None = None,
    gang: int = 0,
) -> tuple[Manifest, ...]:
    """Return the children of an attempt, in the order of their creation.

    `grace_seconds` is the grace period of its pods; absent: the minimum of the settings. `needs` is the size of the
    evaluation; absent: not yet known. `gang` is the number of its pods that the scheduler places on nodes together, or
    none of them; 0: it places each on its own.
    """
    service = (_service(config),) if names.has_service(config) else ()
    group = (_pod_group(config, settings, gang),) if gang else ()
    grace_seconds = grace_seconds or settings.termination_grace.least_seconds
    # That of a poll would remain after it: polls have no peers, and their progress is not read.
    has_policy = bool(settings.operator_namespace) and config.stage is not Stage.POLL
    policy = (_network_policy(config, settings.operator_namespace),) if has_policy else ()
    return (
        _config_map(config),
        *policy,  # before the Job, so that no pod is reachable without it
        *service,
        *group,
        _job(config, settings, grace_seconds, needs or evaluation_needs(None), has_gang=bool(gang)),
    )


def gang_size(config: TrainerConfig) -> int:
    """Return the `gang` with which an attempt should be rendered; 0 if one pod of it is useful without others."""
    fewest = fewest_workers(config.spec, config.world.nodes) if config.stage is Stage.TRAIN else 1
    return fewest if fewest > 1 else 0


def render_all(job: FineTuneJob, settings: OperatorSettings) -> tuple[Manifest, ...]:
    """Return the children of the first run of a job without restarts, for all stages."""
    return tuple(
        manifest
        for stage in run_stages()
        for manifest in render_stage(stage_config(job, 1, stage, 1, settings.storage), settings)
    )


def _metadata(config: TrainerConfig) -> Manifest:
    return {
        "name": names.name_of(config),
        "namespace": config.job.namespace,
        "labels": names.child_labels(config),
        "ownerReferences": [
            {
                "apiVersion": constants.API_VERSION,
                "kind": constants.KIND,
                "name": config.job.name,
                "uid": config.job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _config_map(config: TrainerConfig) -> Manifest:
    """Return the ConfigMap. It does not contain the values of environment variables, which are only in the pod
    template."""
    shown = config.model_copy(update={"spec": without_secrets(config.spec)})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(config),
        "immutable": True,
        "data": {constants.CONFIG_KEY: shown.to_json()},
    }


def _network_policy(config: TrainerConfig, operator_namespace: str) -> Manifest:
    """Return the policy of an attempt. It is kept until the FineTuneJob is deleted, so that it also covers pods that
    are terminating."""
    own = {
        "matchLabels": {constants.LABEL_JOB_NAME: names.name_of(config), constants.LABEL_JOB_UID: config.job.uid},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(config),
        "spec": network_policy_spec(own, operator_namespace),
    }


def _service(config: TrainerConfig) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_metadata(config), "name": names.service_name(names.name_of(config))},
        "spec": {
            "clusterIP": "None",
            # Ranks resolve each other's names before they are ready.
            "publishNotReadyAddresses": True,
            "selector": {
                constants.LABEL_JOB_NAME: names.name_of(config),
                constants.LABEL_JOB_UID: config.job.uid,
            },
            "ports": [{"name": "progress", "port": constants.PROGRESS_PORT}],
        },
    }


def _pod_group(config: TrainerConfig, settings: OperatorSettings, gang: int) -> Manifest:
    priority = filled(config.spec.workers, settings.additions.defaults.workers).priority_class_name
    annotations = {constants.ANNOTATION_ATTEMPT_SPEC_HASH: attempt_hash(config.spec)}
    return {
        "apiVersion": constants.POD_GROUP_API,
        "kind": "PodGroup",
        "metadata": _metadata(config) | {"annotations": annotations},
        "spec": {
            "schedulingPolicy": {"gang": {"minCount": gang}},
            # The attempt ends with the first pod that is preempted: preempting one costs as much as preempting all.
            "disruptionMode": {"all": {}},
            # The scheduler rejects a group with another priority than its pods.
            **({"priorityClassName": priority} if priority else {}),
        },
    }


def _job(
    config: TrainerConfig,
    settings: OperatorSettings,
    grace_seconds: int,
    needs: EvaluationNeeds,
    *,
    has_gang: bool,
) -> Manifest:
    annotations = {
        constants.ANNOTATION_RUN_SPEC_HASH: run_hash(config.spec),
        constants.ANNOTATION_ATTEMPT_SPEC_HASH: attempt_hash(config.spec),
        constants.ANNOTATION_EVALUATION_SPEC_HASH: evaluation_hash(config.spec),
    }
    if config.plan is not None:
        plan = config.plan.model_dump_json(by_alias=True, exclude_defaults=True)
        annotations[constants.ANNOTATION_ATTEMPT_PLAN] = plan
    timeout = STAGES[config.stage].timeout_seconds
    if config.world.gpu_count:
        annotations[constants.ANNOTATION_GPUS] = str(config.world.gpu_count)
    metadata = _metadata(config)
    queue = settings.queue(config.spec) if config.stage is Stage.TRAIN else ""
    if queue:
        metadata["labels"] = metadata["labels"] | {constants.LABEL_QUEUE: queue}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata | {"annotations": annotations},
        "spec": {
            # Only Kueue changes it: it admits the Job by false, and evicts it by true.
            **({"suspend": True} if queue else {}),
            "completionMode": "Indexed",
            "completions": config.world.nodes,
            "parallelism": config.world.nodes,
            # The first failed pod fails the attempt. The restart policy of the operator decides about the next one.
            "backoffLimit": 0,
            **({} if timeout is None else {"activeDeadlineSeconds": timeout}),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": constants.TRAINER_CONTAINER,
                            "operator": "In",
                            "values": sorted(int(code) for code in PERMANENT_EXIT_CODES),
                        },
                    },
                ]
            },
            "template": pod_template(config, settings, grace_seconds, needs, gang=metadata["name"] if has_gang else ""),
        },
    }
