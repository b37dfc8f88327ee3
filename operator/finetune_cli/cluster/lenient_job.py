"""Convert a stored object to a job that can be shown, even if its spec is invalid. Pure."""

from pydantic import ValidationError

from finetune_api.v1alpha1 import FineTuneJob, Restart, Spec, Status
from finetune_api.v1alpha1.job import Metadata
from finetune_operator.manifests import Manifest

from ..exit_status import CommandError


def lenient_job(manifest: Manifest) -> FineTuneJob:
    """Return the job without validating its spec. Of the spec, only `suspend` and `restart` are set.

    The operator validates specs and reports the result in status, so invalid objects must be shown too. Raises
    CommandError if metadata, status or `restart` cannot be parsed.
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
            f"{name} cannot be shown ({where}: {first['msg']}); "
            "if the operator is newer than this command, upgrade the command or use `-o json`"
        ) from None


def is_observed(job: FineTuneJob) -> bool:
    """Whether the status refers to the current spec."""
    return job.status.observed_generation == job.metadata.generation


def is_settled(job: FineTuneJob) -> bool:
    """Whether the phase is terminal and the operator has observed the last change of the spec."""
    return job.status.phase.is_terminal and is_observed(job)
