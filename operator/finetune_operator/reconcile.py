"""Reconcile a FineTuneJob: observe it, make a plan, execute the plan.

It is idempotent: repeating it without changes in the cluster writes nothing. The rules are in `policy`; which objects
have to be read, and when the job policy applies, is decided here.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import ValidationError

from finetune_api.clock import rfc3339
from finetune_api.constants import ConditionType, Reason
from finetune_api.progress import Progress
from finetune_api.rules import Violation
from finetune_api.rules import violations as spec_violations
from finetune_api.trainer_config import TrainerConfig
from finetune_api.v1alpha1 import FineTuneJob, Spec, Status
from finetune_api.v1alpha1.job import Metadata
from finetune_api.validation import InvalidJobError, parse_job

from .cache.job_cache import is_settled_status
from .clusters import Cluster
from .errors import ApiError, ClusterConflictError
from .job_policy import rules as job_policy
from .manifests import JobKey, Manifest
from .observed import Observed
from .policy import history, in_force, runs, schedule
from .policy.actions import CreateChildren, CreateEvent, DeleteJob, Requeue, UpdateStatus
from .policy.facts import Facts
from .policy.plan import Plan, plan_of, queued_job, rechecked, refused, rejection, unexplained_objects
from .render import gang_size, render_event, render_stage
from .settings import OperatorSettings


@dataclass(frozen=True)
class ReconcileResult:
    """Result of a reconcile."""

    requeue: Requeue
    """When to reconcile again, and why."""
    status: Status
    """Status after the reconcile."""
    before: Status
    """Status before the reconcile."""
    uid: str
    """UID of the object."""

    @property
    def requeue_after(self) -> float | None:
        """Seconds until the next reconcile without an event; None: only after an event."""
        return self.requeue.seconds


async def reconcile(
    cluster: Cluster, key: JobKey, settings: OperatorSettings, now: datetime, *, local: bool = False
) -> ReconcileResult | None:
    """Reconcile a job once; None if it does not exist or is being deleted. `local` allows `file://` inputs.

    Raises ApiError and ApiUnreachableError for requests that may succeed when they are retried.
    """
    manifest = await cluster.get(key)
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return None
    shell = _Shell(cluster, key, manifest, settings, now)
    job, violations = await shell.read_job(local=local)
    if job is None:
        plan = rejection(manifest, violations, rfc3339(now))
        await shell.execute(plan)
    else:
        is_awaited = not violations and runs.awaits_end(job) and not schedule.starts_run(job.spec, job.status, now)
        running = await shell.job_of_run(job) if is_awaited else None
        if running is not None:
            job, violations = running
        facts = replace(await shell.observe(job, violations), awaits_end=running is not None)
        plan = plan_of(facts)
        if shell.needs_labels(facts, plan):
            facts, plan = await shell.with_labels(facts, plan)
        refusal = await shell.execute(plan)
        if refusal is not None:
            plan = refused(facts, plan, *refusal)
            await shell.execute(plan)
    return ReconcileResult(plan.requeue, plan.status, plan.before, manifest["metadata"].get("uid", ""))


@dataclass(frozen=True)
class _Shell:
    """The requests of one reconcile."""

    cluster: Cluster
    key: JobKey
    manifest: Manifest
    settings: OperatorSettings
    now: datetime

    # ---- observe ---------------------------------------------------------------------------------------------------

    async def read_job(self, *, local: bool) -> tuple[FineTuneJob | None, tuple[Violation, ...]]:
        """Return the job and its violations.

        Violations are reported, and nothing is started. A run in progress continues and can be stopped: the job of an
        invalid object has only the part of the spec that does this; None if nothing can be running.
        """
        try:
            job = parse_job(self.manifest, local=local)
        except InvalidJobError as error:
            return await self._job_in_force(), error.violations
        # A run that has ended starts nothing: a later policy does not make its object invalid.
        found = () if is_settled_status(self.manifest) else self._policy_violations(job.spec)
        return (await self._job_in_force(), found) if found else (job, ())

    def _policy_violations(self, spec: Spec) -> tuple[Violation, ...]:
        policy = self.settings.policy
        return () if policy is None else job_policy.violations(spec, policy, _defaults(self.settings))

    async def job_of_run(self, job: FineTuneJob) -> tuple[FineTuneJob, tuple[Violation, ...]] | None:
        """Return the job with the spec of its current run, and violations of the combination with the other fields.

        None: the run has no attempt with pods, so that nothing is interrupted by the start of the new run. The spec is
        read from the configuration of the newest attempt that has one: that of an attempt that is being stopped may be
        deleted.
        """
        started = None
        for attempt in reversed(job.status.run.attempts):
            started = _spec_of(await self.cluster.read_config(self.key, attempt.job_name), job.metadata.uid)
            if started is not None:
                break
        if started is None:
            return None
        spec = in_force.spec_of_run(job.spec, started)
        return job.model_copy(update={"spec": spec}), spec_violations(spec, local=True)

    async def observe(self, job: FineTuneJob, violations: tuple[Violation, ...]) -> Facts:
        """Read the children, the progress of the active stage, and Events where the state of the pods has no reason."""
        cluster, key = self.cluster, self.key
        jobs = await cluster.list_jobs(key, history.open_attempt_jobs(job.status))
        open_jobs = history.open_jobs(job.status, jobs)
        pods = await cluster.list_pods(key, open_jobs) if open_jobs else []
        recorded = {attempt.job_name for attempt in job.status.run.attempts if attempt.outcome is not None}
        observed = Observed.from_manifests(job.metadata.uid, jobs, pods, now=self.now, recorded=recorded)
        progress = await self._progress(observed, pods)
        facts = Facts(self.manifest, job, self.settings, self.now, observed, progress, violations=violations)
        if uid := queued_job(facts):
            facts = replace(facts, queue_reason=await cluster.read_queue_reason(key, uid))
        names = unexplained_objects(facts)
        return replace(facts, warnings=tuple(await cluster.list_warnings(key, names))) if names else facts

    def needs_labels(self, facts: Facts, plan: Plan) -> bool:
        """Whether the objects that a valid spec names must have a label, which has to be read now.

        It is read when an attempt is started and when the spec has changed, not in every reconcile of a running job.
        """
        if self.settings.policy is None or not facts.is_valid:
            return False
        if plan.starts_attempt:
            return True
        return not is_settled_status(self.manifest) and not _is_accepted(facts.job)

    async def with_labels(self, facts: Facts, plan: Plan) -> tuple[Facts, Plan]:
        """Return facts and plan with the violations of objects without the label, and of a run that starts again."""
        spec = facts.spec
        try:
            found = (*self._policy_violations(spec), *await self._unlabeled(spec))
        except ApiError as error:
            if not error.is_lasting or not plan.starts_attempt:
                raise
            return facts, refused(facts, plan, Reason.CANNOT_CREATE, str(error))
        if not found:
            return facts, plan
        job = await self._job_in_force()
        if job is None:
            return facts, rechecked(rejection(self.manifest, found, facts.stamp), self.settings)
        facts = replace(facts, job=job, violations=found)
        return facts, rechecked(plan_of(facts), self.settings)

    async def _unlabeled(self, spec: Spec) -> tuple[Violation, ...]:
        assert self.settings.policy is not None
        named = job_policy.referenced_objects(spec, self.settings.policy, _defaults(self.settings))
        objects = dict.fromkeys((one.kind, one.name) for one in named)
        labels = {(kind, name): await self.cluster.read_labels(self.key, kind, name) for kind, name in objects}
        found = (job_policy.label_violation(one, labels[one.kind, one.name]) for one in named)
        return tuple(violation for violation in found if violation is not None)

    async def _progress(self, observed: Observed, pods: list[Manifest]) -> Progress | None:
        first = next((pod.name for pod in observed.active[-1].pods if pod.index == 0), "") if observed.active else ""
        manifest = next((pod for pod in pods if pod["metadata"]["name"] == first), None)
        return None if manifest is None else await self.cluster.read_progress(manifest)

    async def _job_in_force(self) -> FineTuneJob | None:
        """Return an invalid job with the part of its spec that can stop a run.

        None if nothing can be running, or if a newer operator wrote the status. The last valid spec is in the ConfigMap
        of the newest attempt, which exists as long as its pods. It is read only if suspend, budget or restart of the
        object is invalid.
        """
        spec = self.manifest.get("spec")
        written = spec if isinstance(spec, dict) else {}
        try:
            metadata = Metadata.model_validate(self.manifest["metadata"])
            status = Status.read(self.manifest.get("status"))
        except ValidationError:
            return None
        if status.terminal_condition is not None:
            return None
        last = None
        if status.run.attempts and not in_force.is_readable(written):
            config = await self.cluster.read_config(self.key, status.run.attempts[-1].job_name)
            last = _spec_of(config, metadata.uid)
        return FineTuneJob.model_construct(metadata=metadata, spec=in_force.spec_in_force(written, last), status=status)

    # ---- execute ---------------------------------------------------------------------------------------------------

    async def execute(self, plan: Plan) -> tuple[Reason, str] | None:
        """Execute the actions in their order.

        Returns reason and message if the cluster refuses a change of the children; the remaining actions are not
        executed. Raises errors that may be temporary.
        """
        for action in plan.actions:
            match action:
                case CreateChildren() | DeleteJob():
                    refusal = await self._change_children(action)
                    if refusal is not None:
                        return refusal
                case CreateEvent(event):
                    await self.cluster.create_event(render_event(self.manifest, event, rfc3339(self.now)))
                case UpdateStatus(content):
                    await self.cluster.update_status(self.manifest, content)
        return None

    async def _change_children(self, action: CreateChildren | DeleteJob) -> tuple[Reason, str] | None:
        try:
            match action:
                case CreateChildren(config, needs, grace):
                    gang = await self._gang(config)
                    for child in render_stage(config, self.settings, grace_seconds=grace, needs=needs, gang=gang):
                        await self.cluster.create_child(child)
                case DeleteJob(name, uid, has_gang):
                    await self.cluster.delete_job(self.key, name, uid, has_gang=has_gang)
        except ClusterConflictError as error:
            return Reason.CHILD_CONFLICT, str(error)
        except ApiError as error:
            if error.is_lasting:
                return Reason.CANNOT_CREATE, str(error)
            raise
        return None

    async def _gang(self, config: TrainerConfig) -> int:
        size = gang_size(config) if self.settings.gang_scheduling else 0
        return size if size and await self.cluster.serves_pod_groups() else 0


def _defaults(settings: OperatorSettings) -> job_policy.Defaults:
    return job_policy.Defaults(
        image=settings.trainer_image,
        endpoint=settings.storage.endpoint or "",
        credentials_secret=settings.credentials_secret,
    )


def _is_accepted(job: FineTuneJob) -> bool:
    """Whether status reports that the current spec is valid."""
    accepted = next((entry for entry in job.status.conditions if entry.type is ConditionType.ACCEPTED), None)
    generation = job.metadata.generation
    return accepted is not None and accepted.status == "True" and accepted.observed_generation == generation


def _spec_of(config: str | None, uid: str) -> Spec | None:
    """Return the spec of an attempt from its configuration; None if it is missing or belongs to another object."""
    try:
        found = TrainerConfig.model_validate_json(config or "")
    except ValidationError:
        return None
    return found.spec if found.job.uid == uid else None
