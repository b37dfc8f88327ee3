"""An object as it was read -> a job that can be shown, whatever its spec. Pure."""

from pydantic import ValidationError

from finetune_api.v1alpha1 import FineTuneJob, Restart, Spec, Status
from finetune_api.v1alpha1.job import Metadata
from finetune_operator.manifests import Manifest

from ..exit_status import CommandError


def lenient_job(manifest: Manifest) -> FineTuneJob:
    """The job, its spec not judged: `suspend` and `restart` are all that is there of it.

    The operator has judged it already, and its status says how; an object that it refuses has to be shown too.
    """
    spec = manifest.get("spec", {})
    try:
        return FineTuneJob.model_construct(
            metadata=Metadata.model_validate(manifest["metadata"]),
            spec=Spec.model_construct(  # type: ignore[call-arg]
                suspend=bool(spec.get("suspend")), restart=Restart.model_validate(spec.get("restart") or {})
            ),
            status=Status.read(manifest.get("status")),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        name = manifest["metadata"]["name"]
        raise CommandError(
            f"{name} cannot be shown ({where}: {first['msg']}); is the operator newer than this command? -o json works"
        ) from None


def is_seen(job: FineTuneJob) -> bool:
    """The operator's status speaks of the spec as it is now."""
    return job.status.observed_generation == job.metadata.generation


def is_settled(job: FineTuneJob) -> bool:
    """The phase is terminal, and the operator has seen the last change of the spec."""
    return job.status.phase.is_terminal and is_seen(job)
