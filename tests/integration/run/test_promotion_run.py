"""Local runs that promote their models, or do not."""

from pathlib import Path
from typing import Any

from finetune_api.constants import ConditionType, Phase, Stage
from finetune_api.run_layout import PromotionLayout, RunLayout
from finetune_api.v1alpha1 import CandidateName, FineTuneJob, PromotionOutcome
from finetune_cli.display.summary import summarize
from finetune_trainer.model.export import folder_digest
from finetune_trainer.promotion.by_hand import Promotions
from promoted_models import promoted_files

GOOD = {"learningRate": 5e-3, "epochs": 12}
BAD = {"learningRate": 1e-6, "epochs": 1}


def conditions(job: FineTuneJob) -> dict[ConditionType, tuple[str, str]]:
    return {entry.type: (entry.status, entry.reason) for entry in job.status.conditions}


def attempts(job: FineTuneJob, stage: Stage) -> list[int]:
    return [entry.number for entry in job.status.run.attempts if entry.stage is stage]


def test_a_worse_run_is_refused_and_a_changed_condition_is_decided_without_training(bench: Any, tmp_path: Path) -> None:
    layout = PromotionLayout.of(f"s3://{bench.bucket}/out")
    promotions = Promotions(bench.store, layout, person="ada")

    def run(training: dict[str, Any], **promote: Any) -> FineTuneJob:
        job = bench.job(training=training, data={"test": {"fraction": 0.4}}, evaluation={"promote": promote})
        return bench.run(job)

    first = run(GOOD)
    assert first.status.run.promotion is not None
    assert first.status.run.promotion.outcome is PromotionOutcome.PROMOTED
    assert conditions(first)[ConditionType.PROMOTED] == ("True", "Promoted")
    assert first.status.run.artifact is not None
    original = promoted_files(bench.store, layout.output_uri)
    folder = tmp_path / "promoted"
    bench.store.download_files(layout.folder, [name for name in original if name != "README.md"], folder)
    assert folder_digest(folder) == first.status.run.artifact.digest

    worse = run(BAD)
    promotion = worse.status.run.promotion
    assert promotion is not None
    assert (worse.status.phase, worse.status.run.number) == (Phase.SUCCEEDED, 2)
    assert (promotion.outcome, promotion.uri) == (PromotionOutcome.REFUSED, first.status.run.artifact.uri)
    assert conditions(worse)[ConditionType.PROMOTED] == ("False", "PromotionRefused")
    assert worse.status.metrics_of(CandidateName.PROMOTED) == first.status.metrics_of(CandidateName.TUNED)
    assert [past.promotion.outcome for past in worse.status.history if past.promotion] == [PromotionOutcome.PROMOTED]
    assert worse.status.run.artifact is not None
    page = bench.store.get(worse.status.run.artifact.report).decode()
    assert "The model was not promoted" in page
    assert "Accuracy gain over the promoted model, -" in page
    assert ("promotion", f"Refused: {promotion.message}") in summarize(worse).facts
    assert promoted_files(bench.store, layout.output_uri) == original

    accepted = run(BAD, maxPValue=1, minGainOverPromoted=-1)
    assert accepted.status.run.promotion is not None
    assert (accepted.status.run.number, accepted.status.run.promotion.outcome) == (2, PromotionOutcome.PROMOTED)
    assert (attempts(accepted, Stage.TRAIN), attempts(accepted, Stage.EVALUATE)) == ([1], [1, 2])
    changed = promoted_files(bench.store, layout.output_uri)
    assert changed["model.safetensors"] != original["model.safetensors"]

    change = promotions.roll_back(reason="worse")
    assert change.record.folder == RunLayout.of(layout.output_uri, 1, first.metadata.uid).uri
    assert promoted_files(bench.store, layout.output_uri) == original
