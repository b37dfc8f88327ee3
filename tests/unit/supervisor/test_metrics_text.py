from finetune_api.progress import CommittedCheckpoint, Progress
from finetune_api.v1alpha1 import Metric
from finetune_trainer.supervisor.progress_server import metrics_text


def test_known_values_are_gauges_with_stage_and_attempt() -> None:
    saved = CommittedCheckpoint(step=4, uri="s3://b/m.json", time="1970-01-01T00:01:00Z", save_seconds=0.25)
    text = metrics_text(
        Progress(
            stage="train",
            attempt=2,
            step=5,
            loss=0.5,
            last_checkpoint=saved,
            evaluation={Metric.MACRO_F1: 0.75},
            phase_seconds={"steps": 3.0},
        )
    )
    lines = text.splitlines()
    assert 'finetune_step{stage="train",attempt="2"} 5' in lines
    assert 'finetune_loss{stage="train",attempt="2"} 0.5' in lines
    assert 'finetune_last_checkpoint_timestamp_seconds{stage="train",attempt="2"} 60.0' in lines
    assert 'finetune_evaluation{stage="train",attempt="2",metric="MacroF1"} 0.75' in lines
    assert 'finetune_phase_seconds{stage="train",attempt="2",phase="steps"} 3.0' in lines


def test_unknown_values_are_omitted() -> None:
    text = metrics_text(Progress(stage="prepare"))
    assert "finetune_loss" not in text
    assert "last_checkpoint" not in text


def test_every_gauge_has_help_and_type() -> None:
    lines = metrics_text(Progress(stage="train", loss=1.0)).splitlines()
    names = {line.split("{")[0] for line in lines if not line.startswith("#")}
    for kind in ("HELP", "TYPE"):
        assert {line.split()[2] for line in lines if line.startswith(f"# {kind} ")} == names
