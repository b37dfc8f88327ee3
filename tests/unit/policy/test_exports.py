"""Sizes and speeds of exports: message of the evaluate pod -> status -> command line."""

from factories import make_job
from finetune_api.constants import Stage
from finetune_api.progress import EvaluateResult, ExportResult, TerminationMessage
from finetune_api.v1alpha1 import ArtifactStatus, CandidateName, CandidateStatus, Metric, ResolvedStatus, Status
from finetune_api.validation import parse_job
from finetune_cli.display.summary import export_rows
from finetune_operator.observed import Observed
from finetune_operator.policy.history import apply_observation
from finetune_operator.policy.runs import Run
from finetune_operator.policy.world import evaluation_needs
from observations import STAMP, make_pod, make_stage
from statuses import make_status

URI = "s3://bucket/out/runs/r0001-1/model"


def evaluated() -> Status:
    exports = {
        CandidateName.TUNED: ExportResult(bytes=269_000_000, examples_per_second=4.5),
        CandidateName.GGUF_Q8_0: ExportResult(bytes=145 * 2**20, examples_per_second=4.25, metrics={Metric.LOSS: 1.5}),
        CandidateName.INT8: ExportResult(bytes=10),
        CandidateName.COMPRESSED_TENSORS: ExportResult(bytes=11),
    }
    result = EvaluateResult(report_uri="s3://r", model_uri=URI, digest="d", tuned={Metric.LOSS: 1.25}, exports=exports)
    message = TerminationMessage.decode(TerminationMessage(stage="evaluate", exit_code=0, evaluated=result).encode())
    before = make_status(run=1, stage="evaluate", attempt=1, artifact=ArtifactStatus(uri=URI, digest="d"))
    child = make_stage(Stage.EVALUATE, 1, ended="Complete", pods=(make_pod(0, 0, message=message),))
    return apply_observation(before, Run(1, "", is_new=False), Observed((child,)), None, STAMP)


def test_an_export_is_a_candidate_with_size_and_speed_beside_the_fine_tuned_model() -> None:
    status = Status.read(evaluated().written())
    assert status.run.candidates == {
        CandidateName.TUNED: CandidateStatus(metrics={Metric.LOSS: 1.25}, bytes=269_000_000, examples_per_second=4.5),
        CandidateName.GGUF_Q8_0: CandidateStatus(
            metrics={Metric.LOSS: 1.5}, bytes=145 * 2**20, examples_per_second=4.25
        ),
        CandidateName.INT8: CandidateStatus(bytes=10),
        CandidateName.COMPRESSED_TENSORS: CandidateStatus(bytes=11),
    }


def test_the_command_line_shows_each_export() -> None:
    assert export_rows(evaluated()) == [
        ("Int8", "10 B"),
        ("GGUF Q8_0", "145.0 MiB, 4.25 examples per second, loss 1.5"),
        ("CompressedTensors", "11 B"),
    ]
    assert export_rows(make_status()) == []


def test_the_evaluate_pod_has_memory_for_a_gguf_file_that_is_dequantized() -> None:
    resolved = ResolvedStatus(parameters=10**9, test_tokens=10, dtype="BFloat16")
    jobs = [
        make_job(data={"format": "Text"}, output={"uri": "s3://bucket/out", "formats": formats})
        for formats in (["Merged", "Int8"], ["GGUF"])
    ]
    usual, twice = (evaluation_needs(resolved, parse_job(job).spec) for job in jobs)
    assert usual == evaluation_needs(resolved)
    base = evaluation_needs(resolved.model_copy(update={"parameters": 0})).memory_bytes
    assert twice.memory_bytes - base == 2 * (usual.memory_bytes - base)
