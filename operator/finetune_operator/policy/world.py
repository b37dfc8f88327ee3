"""Processes of an attempt, and the division of an optimizer step among them."""

from finetune_api.batches import default_micro_batch, largest_divisor
from finetune_api.constants import Stage
from finetune_api.evaluation_needs import EvaluationNeeds, model_copies
from finetune_api.stages import stage_order
from finetune_api.trainer_config import BatchPlan, JobRef, StorageSettings, TrainerConfig, World
from finetune_api.v1alpha1 import AttemptPlan, AttemptStatus, Dtype, FineTuneJob, ResolvedStatus, Spec, Storage


def stage_config(
    job: FineTuneJob,
    run: int,
    stage: Stage,
    attempt: int,
    storage_defaults: StorageSettings,
    attempts: tuple[AttemptStatus, ...] = (),
    plan: AttemptPlan | None = None,
    resolved: ResolvedStatus | None = None,
) -> TrainerConfig:
    """Return the configuration of an attempt. `plan` is that of a training attempt; absent: all workers of the spec."""
    nodes = None if plan is None else plan.nodes
    gpus = evaluation_needs(resolved, job.spec).gpus(job.spec) if stage is Stage.EVALUATE else None
    return TrainerConfig(
        job=JobRef(namespace=job.metadata.namespace, name=job.metadata.name, uid=job.metadata.uid),
        run=run,
        stage=stage,
        attempt=attempt,
        spec=job.spec,
        storage=storage_settings(job.spec.storage, storage_defaults),
        world=world(job.spec, stage, nodes) if gpus is None else World(gpus=gpus > 0),
        batch=batch_plan(job.spec, nodes, None if plan is None else plan.micro_batch_limit),
        plan=plan,
        attempts=attempts if stage_order(stage) > stage_order(Stage.TRAIN) else (),
    )


def world(spec: Spec, stage: Stage, nodes: int | None = None) -> World:
    """Return the processes of a stage: all workers, or `nodes`, for training; one process for the other stages."""
    gpus = spec.workers.gpus_per_node
    if stage is Stage.TRAIN:
        return World(nodes=nodes or spec.workers.nodes, processes_per_node=max(1, gpus), gpus=gpus > 0)
    return World()


def evaluation_needs(resolved: ResolvedStatus | None, spec: Spec | None = None) -> EvaluationNeeds:
    """Return the size of the evaluation, if the prepare stage has determined it."""
    if resolved is None:
        return EvaluationNeeds(parameters=0, test_tokens=None, dtype=Dtype.FLOAT32)
    return EvaluationNeeds(
        parameters=resolved.parameters or 0,
        test_tokens=resolved.test_tokens,
        dtype=Dtype(resolved.dtype) if resolved.dtype else Dtype.FLOAT32,
        copies=1 if spec is None else model_copies(spec),
        # Not known if the sets were added after the run was prepared.
        regression_tokens=resolved.regression_tokens if spec is not None and spec.evaluation.regression_sets else 0,
    )


def batch_plan(spec: Spec, nodes: int | None = None, micro_batch_limit: int | None = None) -> BatchPlan:
    """Divide the global batch: global = processes * micro * accumulation. Validation ensures that it is divisible.

    With fewer workers, `nodes`, the micro-batch size does not grow; the number of micro-batches does.
    """
    processes = world(spec, Stage.TRAIN, nodes).size
    share = spec.training.global_batch_size // processes
    micro = spec.training.micro_batch_size or default_micro_batch(spec, processes)
    if micro_batch_limit is not None and micro > micro_batch_limit:
        micro = largest_divisor(share, micro_batch_limit)
    return BatchPlan(global_size=spec.training.global_batch_size, micro_size=micro, accumulation=share // micro)


def storage_settings(own: Storage, defaults: StorageSettings) -> StorageSettings:
    """Merge the storage block of a job with the defaults of the operator."""
    endpoint = own.endpoint or defaults.endpoint
    path_style = own.path_style
    if path_style is None:
        path_style = defaults.path_style or endpoint is not None
    return StorageSettings(endpoint=endpoint, region=own.region or defaults.region, path_style=path_style)
