"""Every reason of conditions and Events, and every class of failures: what it means, and what to do. Pure.

docs/troubleshooting.md is generated from these tables.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .constants import Reason
from .exit_codes import ExitCode, RetryClass, name_of, retry_class

_WIDTH = 120


@dataclass(frozen=True)
class Explanation:
    """An entry of docs/troubleshooting.md."""

    meaning: str
    """What it means, with the conditions or the Event that report it."""
    operator: str
    """What the operator does. Empty: nothing."""
    action: str = ""
    """What a person should do. Empty: nothing."""
    commands: tuple[str, ...] = ()
    """Commands for that, with the job NAME."""


_STATUS = "finetune status NAME"
_FAILURE = "kubectl get ftj NAME -o jsonpath='{.status.run.failure}'"
_LOGS = "finetune logs NAME"
_EVENTS = "kubectl describe ftj NAME"
_PODS = "kubectl get pods -l finetune.dev/job=NAME -o wide"
_EDIT = "kubectl edit ftj NAME"
_APPLY = "kubectl apply -f job.yaml"
_SUSPEND = """kubectl patch ftj NAME --type=merge -p '{"spec": {"suspend": true}}'"""
_RESUME = """kubectl patch ftj NAME --type=merge -p '{"spec": {"suspend": false}}'"""

_CONTINUES = "Then [continue the run](#continuing-a-failed-run)."
_ENDS = "The run ends. Its Jobs and pods are kept until `spec.ttlSecondsAfterFinished` has passed."

REASONS: Mapping[Reason, Explanation] = {
    Reason.VALID: Explanation(
        "`Accepted` is True: the spec is valid.",
        "It starts the run, or applies the change.",
    ),
    Reason.INVALID_SPEC: Explanation(
        "`Accepted` is False: the spec violates the schema, a rule, or the [job policy](security.md). The message "
        "lists every violation with its path and how to correct it.",
        "It starts nothing new. A running attempt continues with the last valid spec.",
        "Correct what the message lists, and apply the job again. `finetune validate` finds the same violations before "
        "a job is applied, except those of a job policy.",
        ("finetune validate job.yaml", _APPLY),
    ),
    Reason.UNKNOWN_FIELDS: Explanation(
        "`Accepted` is True, but the API server dropped fields that do not exist, because the client did not ask for "
        "validation. The message lists them.",
        "It runs the job without these fields.",
        "Correct the names of the fields.",
        ("kubectl apply --validate=strict -f job.yaml",),
    ),
    Reason.PREPARING: Explanation(
        "`Reconciling`: the prepare stage reads the data and the base model, and writes both to object storage.",
        "It starts the training when the stage has completed.",
    ),
    Reason.TRAINING: Explanation(
        "`Reconciling`: the train stage is running.",
        "It reads the progress of the pods and writes it to `status.run.progress`.",
    ),
    Reason.EVALUATING: Explanation(
        "`Reconciling`: the evaluate stage exports the model, verifies the exported folders, evaluates it on the test "
        "split and writes the report.",
        "It ends the run when the stage has completed.",
    ),
    Reason.RESTARTING: Explanation(
        "`Ready` is False: an attempt has failed. The next one starts at the time in the message, or it runs but has "
        "not completed its first step (training) or not ended (other stages).",
        "It starts the next attempt after a delay ([retries](operating.md#retries)). Training resumes from the last "
        "checkpoint.",
        "Read why the last attempt failed. If it is a [class of failures](#classes-of-failures) that repeats, correct "
        "the cause now.",
        (_STATUS, _FAILURE),
    ),
    Reason.ATTEMPT_FAILED: Explanation(
        "An Event: an attempt has failed. The message has the [class of the failure](#classes-of-failures), pod, node, "
        "the first line of the error and advice. `status.run.failure` has the rest.",
        "It starts another attempt or ends the run, depending on the class.",
        "Follow the advice in the message.",
        (_EVENTS, _LOGS),
    ),
    Reason.SUSPENDING: Explanation(
        "`Ready` is False: `spec.suspend` was set to true, and the pods are saving a checkpoint and terminating.",
        "It has deleted the Jobs of the stage and waits until their pods have ended, at most for their grace period.",
    ),
    Reason.SUSPENDED: Explanation(
        "`Suspended` is True: `spec.suspend` is true, and no pod is running.",
        "It starts no stage, no scheduled run and no poll. The time does not count against `spec.budget.deadline`.",
        "Set `spec.suspend` to false to resume from the last checkpoint.",
        (_RESUME,),
    ),
    Reason.RESUMED: Explanation(
        "An Event: a restarted training has completed its first step. The message has the step that it resumed from, "
        "the time since the last attempt ended, and the steps that it repeats.",
        "It continues to read the progress.",
    ),
    Reason.STAGE_WARNING: Explanation(
        "An Event: a stage has reported a warning, such as dropped records, a skipped checkpoint, or storage without "
        "conditional writes. `status.run.warnings` has the last sixteen.",
        "It continues the run.",
        "Read the message. Most warnings need no action.",
        ("kubectl get ftj NAME -o jsonpath='{.status.run.warnings}'",),
    ),
    Reason.SPEC_CHANGED: Explanation(
        "A field of scope `Data` or `Run` was changed, or changed back: another run is the current one. The Event "
        "lists the changes. As reason of `Ready`, the pods of the earlier run have not ended yet.",
        "It stops the pods of the earlier run, which save a checkpoint, and then starts the current run. With "
        "`spec.updatePolicy: Ignore`, the earlier run continues until its end first.",
        "If the change was a mistake, change it back: with `spec.reuse: Always` the earlier run continues from its "
        "checkpoint.",
        ("kubectl get ftj NAME -o jsonpath='{.status.run.changes}'",),
    ),
    Reason.NEW_RUN: Explanation(
        "An Event: a time of `spec.schedule` has passed, or `spec.data.poll` found changed source files.",
        "It starts a new run of the same spec, which prepares the data again.",
    ),
    Reason.NEXT_ATTEMPT: Explanation(
        "`Reconciling` is True: a change is not in effect yet. The message says whether it waits for the next attempt, "
        "for the next evaluation, or for the end of the run.",
        "It does not interrupt the running attempt.",
        "To start an attempt now, suspend and resume the job; a checkpoint is saved. To start the new run of "
        "`spec.updatePolicy: Ignore` now, set that field to `Restart`.",
        (_SUSPEND, _RESUME),
    ),
    Reason.SAVE_FITS: Explanation(
        "`SafeToStop` is True: two saves and two steps fit into the grace period of the pods.",
        "It does nothing: an eviction saves a checkpoint.",
    ),
    Reason.SAVE_TOO_SLOW: Explanation(
        "`SafeToStop` is False: the measured duration of a save does not fit into the grace period of the pods. An "
        "eviction would lose the work since the last checkpoint.",
        "It gives the next attempt a longer grace period, up to the value `pods.terminationGrace.maximumSeconds` of "
        "the chart.",
        "If the message names the maximum, raise that value, use more workers, or train fewer parameters. Otherwise "
        "suspend and resume the job to start an attempt with the longer period.",
        (_SUSPEND, _RESUME),
    ),
    Reason.CHECKPOINT_IN_TIME: Explanation(
        "`CheckpointStale` is False: a crash would not lose more work than `spec.checkpoint.maxLostWork` allows.",
        "",
    ),
    Reason.CHECKPOINT_LATE: Explanation(
        "`CheckpointStale` is True: a crash would lose more work than `spec.checkpoint.maxLostWork` allows. The "
        "message says what delays the next checkpoint.",
        "It continues the training, unless `spec.checkpoint.uploadTimeout` is set and ends the attempt.",
        "Check the object storage that the message names.",
        (_STATUS, "finetune checkpoints list NAME"),
    ),
    Reason.TRAINING_OVERFITS: Explanation(
        "`Overfitting` is True: by the rule `spec.training.overfitting`, the validation loss has risen since its "
        "lowest value while the training loss has fallen. The message has the losses, their steps and the slope; "
        "`status.run.overfitting` has the figures.",
        "With the action `Stop` it ends the training and exports the state with the lowest validation loss, or the "
        "best metric of `spec.training.earlyStopping`. With `Warn` it continues.",
        "Add data, or train for fewer steps. [Overfitting](techniques/overfitting.md) describes the rule.",
        ("kubectl get ftj NAME -o jsonpath='{.status.run.overfitting}'",),
    ),
    Reason.NO_OVERFITTING: Explanation(
        "`Overfitting` is False: the rule `spec.training.overfitting` has found no overfitting so far. The message has "
        "the losses of the last validation.",
        "",
    ),
    Reason.WAITING_FOR_PODS: Explanation(
        "`Ready` is False: pods of the stage are not running 20 s after they were created, or pods of an earlier "
        "attempt have not ended. The message quotes the scheduler, the kubelet or the Job controller.",
        "It checks at intervals of up to 30 s. With `spec.workers.minNodes`, it starts an attempt with fewer workers "
        "after `spec.workers.startTimeout`. `spec.budget.deadline` continues to count.",
        "Depending on the message: free or add nodes, correct the image, the Secret, the claim or the quota, or lower "
        "`spec.workers.nodes` or `spec.workers.resources`.",
        (_STATUS, _PODS),
    ),
    Reason.QUEUED: Explanation(
        "`Ready` is False: the Job of a training attempt waits for its admission by Kueue. The message quotes the "
        "Workload of Kueue.",
        "It checks at intervals of 30 s, less often if many jobs wait. The time in the queue counts neither for "
        "`spec.budget.deadline` nor for `spec.workers.startTimeout`.",
        "Check that the LocalQueue of `spec.workers.queue` exists in the namespace of the job, and that its "
        "ClusterQueue has enough quota for all resources that the pods request, also for `ephemeral-storage`.",
        (_STATUS, "kubectl describe job -l finetune.dev/job=NAME"),
    ),
    Reason.REQUEUED: Explanation(
        "`Ready` is False: Kueue has taken back the quota of a training attempt by suspending its Job.",
        "The pods save a checkpoint, and the next attempt is queued again. This counts neither as a restart nor as a "
        "disruption.",
        commands=(_STATUS,),
    ),
    Reason.FEWER_WORKERS: Explanation(
        "`Ready` is False: not all pods of the attempt were running within `spec.workers.startTimeout`.",
        "It starts the next attempt with the largest number of workers from `spec.workers.minNodes` on that were "
        "running and that divides the global batch. This does not count as a restart. Every later attempt tries "
        "`spec.workers.nodes` again.",
        "Free or add nodes to train with all workers. Suspend and resume the job to start an attempt with them.",
        (_PODS, _SUSPEND, _RESUME),
    ),
    Reason.CANNOT_CREATE: Explanation(
        "`Stalled` is True: the API server refuses to create or delete an object of the job, or to read what that "
        "needs, because of a quota, an admission rule, missing permissions, or a namespace that is being deleted. The "
        "message quotes it.",
        "It repeats the request every 30 s, less often if many jobs wait.",
        "Correct what the message names.",
        ("kubectl describe resourcequota", _EVENTS),
    ),
    Reason.CHILD_CONFLICT: Explanation(
        "`Stalled` is True: an object with the name of a child exists and does not belong to this job.",
        "It does not change the object, and tries again every 30 s.",
        "Delete or rename the object that the message names, or give the job another name.",
        (_STATUS,),
    ),
    Reason.DEADLINE_EXCEEDED: Explanation(
        "`Failed` is True: `spec.budget.deadline` has passed since the start of the run, not counting "
        "the time in which the job was suspended or in a queue.",
        "It stops the pods, which save a checkpoint, and ends the run.",
        "Raise `spec.budget.deadline`. The run continues from its checkpoint with the full new deadline.",
        (_EDIT,),
    ),
    Reason.SUCCEEDED: Explanation(
        "`Complete` is True: the model is in object storage.",
        "It does nothing more until the job is changed, or until `status.dueTime` if it is set.",
        "",
        ("kubectl get ftj NAME -o jsonpath='{.status.run.artifact.uri}'",),
    ),
    Reason.NOT_TRAINED: Explanation(
        "`ModelAvailable` is False: the run has not exported a model yet.",
        "",
    ),
    Reason.EXPORTED: Explanation(
        "`ModelAvailable` is True: the trained model is in object storage, at the address in the message. It stays "
        "there if the evaluation fails.",
        "",
    ),
    Reason.PROMOTED: Explanation(
        "`Promoted` is True: the model meets all conditions of `spec.evaluation.promote` and is in `promoted/`.",
        "",
        "",
        ("finetune promoted NAME",),
    ),
    Reason.PROMOTION_REFUSED: Explanation(
        "`Promoted` is False: a condition of `spec.evaluation.promote` does not hold. The message has each of them "
        "with its values. The run has not failed.",
        "It leaves the promoted model as it is.",
        "If the model is good enough, change the conditions, which evaluates it again, or [promote "
        "it](promotion.md) anyway.",
        ("finetune promote NAME --force",),
    ),
    Reason.PROMOTION_CONFLICT: Explanation(
        "`Promoted` is False: another model was promoted while this one was being evaluated, so it was not compared "
        "with that one. The run has not failed.",
        "It leaves the promoted model as it is.",
        "Promote the model, or change a field of scope `Evaluation` to evaluate it again.",
        ("finetune promoted NAME", "finetune promote NAME"),
    ),
    Reason.PREPARE_FAILED: Explanation(
        "`Failed` is True: the prepare stage has failed, and no other attempt follows.",
        _ENDS,
        f"Correct what `status.run.failure` names. {_CONTINUES}",
        (_STATUS, "finetune logs NAME --stage prepare"),
    ),
    Reason.EVALUATE_FAILED: Explanation(
        "`Failed` is True: the evaluate stage has failed, and no other attempt follows. If `ModelAvailable` is True, "
        "the trained model is at the address in `status.run.artifact`.",
        _ENDS,
        f"Correct what `status.run.failure` names. {_CONTINUES} The model is not trained again.",
        (_STATUS, "finetune logs NAME --stage evaluate"),
    ),
    Reason.PERMANENT_FAILURE: Explanation(
        "`Failed` is True: the training has failed with a class that is not retried, because the same input would fail "
        "again.",
        _ENDS,
        f"Correct what `status.run.failure` names. {_CONTINUES}",
        (_STATUS, "finetune logs NAME --stage train"),
    ),
    Reason.RESTARTS_EXHAUSTED: Explanation(
        "`Failed` is True: the training has failed more than `spec.restart.maxRestarts` times without a new checkpoint "
        "in between.",
        _ENDS,
        f"Correct the cause, or raise `spec.restart.maxRestarts`. {_CONTINUES}",
        (_STATUS, "finetune logs NAME --stage train"),
    ),
    Reason.REPEATED_FAILURE: Explanation(
        "`Failed` is True: the training has failed twice in the same way without a new checkpoint in between, so "
        "another attempt would fail again ([retries](operating.md#retries)).",
        _ENDS,
        f"Change the settings that the message names. {_CONTINUES}",
        (_STATUS, "finetune logs NAME --stage train"),
    ),
    Reason.DISRUPTIONS_EXHAUSTED: Explanation(
        "`Failed` is True: more than `spec.restart.maxDisruptions` attempts were interrupted by evictions, deleted "
        "pods or lost nodes.",
        _ENDS,
        f"Check the nodes, or raise `spec.restart.maxDisruptions`. {_CONTINUES}",
        (_STATUS, "kubectl get nodes"),
    ),
}
"""By reason, in the order of `Reason`."""


FAILURES: Mapping[ExitCode, Explanation] = {
    ExitCode.USAGE: Explanation(
        "The command line or the environment of a process is wrong.",
        "",
        "Remove the variable that the message names from `spec.workers.env`, or use an image of the trainer that has "
        "the version of the operator.",
    ),
    ExitCode.BAD_DATA: Explanation(
        "A record, a file or a split cannot be used. The message names file and line.",
        "",
        "Correct the file and write a new `spec.runNonce`, or set `spec.data.onBadRecord` to `Skip` if the message "
        "names a single record.",
    ),
    ExitCode.MODEL_UNUSABLE: Explanation(
        "The base model is missing, incomplete or of the wrong kind ([base models](operating.md#base-models)), or an "
        "exported folder is not the model that was trained.",
        "",
        "Correct `spec.model.uri` or the files at that address.",
    ),
    ExitCode.STORAGE_UNREACHABLE: Explanation(
        "Object storage does not answer, also after retries.",
        "",
        "Check `spec.storage.endpoint`, its server, and NetworkPolicies. Committed checkpoints are not affected.",
    ),
    ExitCode.INTERNAL_ERROR: Explanation(
        "Any other error, such as a full disk, a damaged checkpoint, or a request that object storage rejects.",
        "",
        "Read the log. If the failure repeats at the same step, inspect the data of that step.",
    ),
    ExitCode.STOPPED: Explanation(
        "The pod was stopped on request, and its state is saved.",
        "If the operator requested it, it does not count as a disruption.",
    ),
    ExitCode.ACCESS_DENIED: Explanation(
        "Object storage or the hub rejects the credentials.",
        "",
        "Check the Secret in `spec.storage.credentialsSecret` or the service account, and the [permissions on the "
        "bucket](storage.md#permissions). For the hub, check `HF_TOKEN`.",
    ),
    ExitCode.BAD_CONFIG: Explanation(
        "The configuration requires something that does not exist or does not suffice: a bucket, an object, a GPU, "
        "memory.",
        "",
        "Correct the field that the message names, or create what it names.",
    ),
    ExitCode.PROGRAM_ERROR: Explanation(
        "An error in the code or the image, such as a KeyError, in the prepare or evaluate stage or before the first "
        "training step.",
        "",
        "Use another image in `spec.workers.image`, and report the error with its log.",
    ),
    ExitCode.OUT_OF_MEMORY: Explanation(
        "An allocation failed, or the kernel killed a rank at the memory limit. With exit code 137, the kernel killed "
        "the whole container.",
        "After the second exit of a training with code 80, it halves the micro-batch.",
        "For training, lower `spec.training.microBatchSize` or `spec.data.maxLength`, raise "
        "`spec.deepspeed.zeroStage`, or raise the memory limit in `spec.workers.resources`; with GPUs, set "
        "`spec.workers.gpuMemory`, so that the next run gets settings that fit. For the other stages, "
        "raise the limit in `spec.stages.prepare.resources` or `spec.stages.evaluate.resources`.",
    ),
    ExitCode.DIVERGED: Explanation(
        "The loss is NaN or infinite.",
        "",
        "Lower `spec.training.learningRate`, add a `spec.training.warmup`, or search the data for corrupt records.",
    ),
    ExitCode.FENCED: Explanation(
        "A newer attempt owns the run, so this one stopped writing.",
        "",
    ),
}
"""By exit code of the trainer. What the operator does follows from `retry_class`; `operator` adds to it."""

DISRUPTIONS: Mapping[str, Explanation] = {
    "Disrupted": Explanation("The pod was evicted, preempted or drained through the Kubernetes API.", ""),
    "PodDeleted": Explanation("A pod was deleted.", ""),
    "NodeLost": Explanation(
        "The node does not respond, and the grace period of the pod has expired.",
        "Processes that still run on the node cannot write to the run.",
        "Check the node.",
    ),
    "Lost": Explanation("The Job failed, and its pods no longer exist.", ""),
    "Evicted": Explanation(
        "The kubelet evicted the pod, because its node was under pressure, or because the pod exceeded its requests or "
        "limits. The message quotes the kubelet.",
        "If the pod exceeded its own requests or limits, it counts as a failure: at most `spec.restart.maxRestarts`.",
        "In that case request what the job uses: memory or `ephemeral-storage` in `spec.workers.resources`, or "
        "`spec.workers.sharedMemory`.",
    ),
}
"""Classes of disruptions, which have no exit code of the trainer."""

OTHER_FAILURES: Mapping[str, Explanation] = {
    "ContainerFailed": Explanation(
        "A container that is not the trainer, such as an injected one, failed the pod before all trainers had "
        "succeeded: an init container, or a sidecar that is an ordinary container.",
        "",
        "Read the log of the container that the message names with `kubectl logs -c`, and correct it or what injects "
        "it. [Injected containers](operating.md#injected-containers) describes which sidecars have no such effect.",
    ),
}
"""Other classes of failures without an exit code of the trainer."""

_RETRIES: Mapping[RetryClass, str] = {
    RetryClass.PERMANENT: "It does not retry the stage, and ends the run.",
    RetryClass.RETRYABLE: "It starts another attempt, at most `spec.restart.maxRestarts` times without a new "
    "checkpoint.",
    RetryClass.DISRUPTION: "It starts another attempt, at most `spec.restart.maxDisruptions` times.",
}


def troubleshooting_page() -> str:
    """docs/troubleshooting.md."""
    parts = [_INTRODUCTION.strip(), "## Contents", "\n".join(_contents()), "## Reasons"]
    for reason, entry in REASONS.items():
        parts.append(_entry(str(reason), entry))
    parts.append(_FAILURES_INTRODUCTION.strip())
    for code, entry in FAILURES.items():
        parts.append(_entry(name_of(code), entry, facts=f"Exit code {int(code)}.", retries=_RETRIES[retry_class(code)]))
    for name, entry in DISRUPTIONS.items():
        parts.append(_entry(name, entry, retries=_RETRIES[RetryClass.DISRUPTION]))
    for name, entry in OTHER_FAILURES.items():
        parts.append(_entry(name, entry, retries=_RETRIES[RetryClass.RETRYABLE]))
    return "\n\n".join([*parts, _OTHERS.strip()]) + "\n"


def _contents() -> Iterator[str]:
    yield _wrapped("- Reasons: " + _links(map(str, REASONS)), indent="  ")
    names = [*map(name_of, FAILURES), *DISRUPTIONS, *OTHER_FAILURES]
    yield _wrapped("- [Classes of failures](#classes-of-failures): " + _links(names), indent="  ")


def _links(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](#{name.lower()})" for name in names)


def _entry(name: str, entry: Explanation, *, facts: str = "", retries: str = "") -> str:
    operator = " ".join(filter(None, [retries, entry.operator]))
    points = [("The operator", operator), ("What to do", entry.action)]
    parts = [
        f"### {name}",
        _wrapped(f"{entry.meaning} {facts}"),
        "\n".join(_wrapped(f"- **{title}:** {text}", indent="  ") for title, text in points if text),
        "\n".join(["```console", *(f"$ {command}" for command in entry.commands), "```"]) if entry.commands else "",
    ]
    return "\n\n".join(filter(None, parts))


def _wrapped(text: str, *, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()), _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


_INTRODUCTION = """
<!-- Generated from operator/finetune_api/reasons.py by `make golden`. -->

# Troubleshooting

Begin with `finetune status NAME`, or without the command line tool with `kubectl describe ftj NAME`. Both show the
conditions of the job, whose reasons are the headings below, and the last failure. [Status of a
job](operating.md#status-of-a-job) describes the conditions.

The commands use the namespace of the current context; add `-n` for another one.
"""

_FAILURES_INTRODUCTION = """
## Continuing a failed run

A run that has failed continues when a field of scope `Attempt`, `Evaluation` or `Now` is changed that may correct the
failure, such as `spec.workers.resources` or `spec.restart.maxRestarts`. Completed stages are not repeated, and training
resumes from its last checkpoint. Restarts, disruptions and the deadline count from 0 again. A change of a field of
scope `Data` or `Run` starts a new run instead. [The API reference](reference.md) has the scope of each field.

## Classes of failures

`status.run.failure.class` and `status.run.attempts[].reason` have the class of a failed attempt.
`status.run.failure.message` has the error and the last lines of the log, `status.run.failure.advice` how to correct it.
[Retries](operating.md#retries) describes the delays, and when a repeated failure ends the run.
"""

_OTHERS = """
### Other classes

`Signal9`, `Signal15` and so on: a signal ended the process; the exit code is 128 plus its number. `Exit3` and so on:
the process ended with that exit code. Both are retried like `InternalError`. A pod that the kubelet does not admit has
the kubelet's reason as class, such as `UnexpectedAdmissionError`, `OutOfcpu` or `NodeAffinity`; it is retried like
`Disrupted`, but after 10 s the first time. If it repeats, the node has fewer resources than the scheduler assumes.
"""
