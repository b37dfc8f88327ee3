"""How attempts end and how the next one resumes: stops, early stopping, damage, late writers, other world sizes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoint.format.manifest import digest_of
from finetune_trainer.store import ObjectStore
from finetune_trainer.supervisor.forkclient import RUN_RANK
from killable_store import BUCKET, KillableStore
from process_support import until
from training_harness import STEPS_PER_EPOCH, TrainingHarness


def test_all_stages_agree_on_the_loss_of_every_step(harness: TrainingHarness) -> None:
    """The head is new, and the base model has a larger one: both must be the same under ZeRO-3, which builds the model
    in partitions."""
    logs = []
    for zero in range(4):
        config = harness.config(f"agree-{zero}", kind="bert", zero=zero, training={"maxSteps": 4, "epochs": None})
        assert harness.run(config).exit_codes == [0, 0]
        logs.append(harness.losses(config))
    for log in logs[1:]:
        assert log == pytest.approx(logs[0], rel=1e-5)


def test_losses_do_not_depend_on_the_micro_batch(harness: TrainingHarness) -> None:
    """Texts have different numbers of tokens: a mean over each micro-batch would give other losses."""
    logs = []
    for micro in (1, 2, 4):
        training = {"maxSteps": 4, "epochs": None}
        config = harness.config(f"micro-{micro}", kind="llama", world=1, micro=micro, training=training)
        harness.finish(config)
        logs.append(harness.losses(config))
    assert len(logs[0]) == 4
    for log in logs[1:]:
        assert log == pytest.approx(logs[0], rel=1e-5)


def test_a_base_without_gradient_checkpointing_is_trained_and_its_rows_follow_their_labels(
    harness: TrainingHarness, tmp_path: Path
) -> None:
    prepared = harness.prepare("bert-lite")
    assert prepared.labels == ("animal", "food")
    assert prepared.warnings == (
        "the base model's classifier is kept: it has the labels of the data",
        "AlbertForSequenceClassification does not support gradient checkpointing, so it is trained without it: "
        "training uses more memory",
    )
    still = {"maxSteps": 1, "epochs": None, "learningRate": 1e-12}
    config = harness.config("lite", kind="bert-lite", zero=3, world=1, training=still)
    assert config.spec.training.gradient_checkpointing
    attempt = harness.run(config)
    assert attempt.exit_codes == [0], attempt.output
    harness.store.download_folder(config.model_uri, tmp_path)
    before = load_file(harness.models / "bert-lite" / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys(), "no weight is stored under a name of earlier versions"
    assert after["classifier.weight"] == pytest.approx(before["classifier.weight"][::-1], abs=1e-6)


def test_a_stop_on_one_rank_stops_both_with_the_state_saved(harness: TrainingHarness) -> None:
    config = harness.config("stop", kind="bert")
    stopped = harness.run(config, TEST_END="stop", TEST_END_STEP="2", TEST_END_RANKS="1")
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert harness.manifests(config) == ["00000003-a0001"]
    assert [entry["step"] for entry in harness.training_log(config)] == [1, 2, 3]
    again = harness.run(harness.config("stop", kind="bert", attempt=2))
    assert again.exit_codes == [0, 0]
    assert again.message.progress is not None
    assert again.message.progress.resumed_from_step == 3
    assert again.message.progress.resumed_from.startswith("node-local cache ("), (
        "both attempts have the same cache folder"
    )
    assert again.message.progress.step == 2 * STEPS_PER_EPOCH


VALIDATED = {"kind": "bert-dropout", "micro": 1, "training": {"earlyStopping": {"patience": 3}}}
"""Two batches of the validation split per rank."""


@pytest.fixture(scope="module")
def log_of_a_validated_run(harness: TrainingHarness) -> list[dict[str, float]]:
    config = harness.config("validated", **VALIDATED)
    assert harness.run(config).exit_codes == [0, 0]
    return harness.training_log(config)


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH], ids=["in the middle", "after the last step"])
def test_a_stop_interrupts_a_validation_which_the_next_attempt_repeats(
    harness: TrainingHarness, log_of_a_validated_run: list[dict[str, float]], step: int
) -> None:
    name = f"interrupted-{step}"
    ends = {"TEST_END": "stop-in-validation", "TEST_END_STEP": str(step), "TEST_END_RANKS": "1"}
    config = harness.config(name, **VALIDATED)
    stopped = harness.run(config, **ends)
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED], stopped.output
    assert harness.manifests(config)[-1] == f"{step:08d}-a0001"
    assert [entry for entry in harness.training_log(config) if "eval_loss" in entry and entry["step"] == step] == []
    again = harness.run(harness.config(name, **VALIDATED, attempt=2))
    assert again.exit_codes == [0, 0], again.output
    assert harness.training_log(config) == log_of_a_validated_run


def test_a_stop_before_the_model_is_built_is_clean(harness: TrainingHarness) -> None:
    stopped = harness.run(
        harness.config("stop-early", kind="bert"), TEST_END="stop", TEST_END_STEP="0", TEST_END_RANKS="0"
    )
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert "before the model was loaded" in stopped.message.error


def test_a_run_whose_last_step_is_saved_is_only_exported(harness: TrainingHarness) -> None:
    config = harness.config("finished", kind="bert")
    last = str(2 * STEPS_PER_EPOCH - 1)
    assert harness.run(config, TEST_END="stop", TEST_END_STEP=last).exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert not harness.store.exists(f"{config.model_uri}/config.json")
    again = harness.run(harness.config("finished", kind="bert", attempt=2))
    assert again.exit_codes == [0, 0], again.output
    assert again.message.trained is not None
    assert again.message.trained.final_step == 2 * STEPS_PER_EPOCH
    assert harness.manifests(config) == ["00000010-a0001"]
    assert len(harness.losses(config)) == 2 * STEPS_PER_EPOCH
    assert harness.exported_loss(config) == pytest.approx(harness.evaluation_losses(config)[10], rel=1e-5)


def test_early_stopping_continues_its_count_after_a_restart_and_exports_the_best_state(
    harness: TrainingHarness,
) -> None:
    # Nothing improves by 100, so the first evaluation remains the best, and the patience ends at the fourth.
    training = {"epochs": 10, "earlyStopping": {"patience": 3, "minDelta": 100.0}}
    through = harness.config("early-through", kind="bert", training=training, evaluation={"everySteps": 2})
    whole = harness.run(through)
    assert whole.message.trained is not None
    assert (whole.message.trained.final_step, whole.message.trained.best_step) == (8, 2)
    assert whole.message.trained.stopped_early

    blocks = {"training": training, "evaluation": {"everySteps": 2}, "checkpoint": {"everySteps": 1}}
    killed = harness.run(harness.config("early", kind="bert", **blocks), TEST_END="kill", TEST_END_STEP="5")
    assert killed.exit_codes == [-9, -9]
    config = harness.config("early", kind="bert", attempt=2, **blocks)
    resumed = harness.run(config)
    assert resumed.exit_codes == [0, 0], resumed.output
    assert resumed.message.trained is not None
    assert resumed.message.trained.model_copy(update={"model_uri": ""}) == whole.message.trained.model_copy(
        update={"model_uri": ""}
    )
    assert harness.training_log(config) == harness.training_log(through)
    for each in (through, config):
        evaluated = harness.evaluation_losses(each)
        assert harness.exported_loss(each) == pytest.approx(evaluated[2], rel=1e-5), "the best state, of step 2"
        assert evaluated[8] != pytest.approx(evaluated[2], rel=1e-3), "the last state would pass as well"


def test_after_damage_of_the_newest_checkpoint_the_previous_one_is_used(harness: TrainingHarness) -> None:
    saves = {"checkpoint": {"everySteps": 2}}
    config = harness.config("damaged", kind="bert", **saves)
    assert harness.run(config, TEST_END="kill", TEST_END_STEP="4").exit_codes == [-9, -9]
    before, newest = harness.manifests(config)[-2:]  # a save is skipped if storage is slow
    manifest = harness.store.get_json(f"{config.run_uri}/checkpoints/manifests/{newest}.json")
    part = harness.store.get_json(f"{config.run_uri}/checkpoints/blobs/{manifest['parts'][1]['digest']}")
    blob = f"{config.run_uri}/checkpoints/blobs/{part['blobs'][0]}"
    content = bytearray(harness.store.get(blob))
    content[100] ^= 1
    harness.store.put(blob, bytes(content))
    shutil.rmtree(harness.cache / "checkpoints")  # like on another host
    again = harness.run(harness.config("damaged", kind="bert", attempt=2, **saves))
    assert again.exit_codes == [0, 0], again.output
    assert again.message.progress is not None
    assert again.message.progress.resumed_from_step == int(before.partition("-")[0])
    assert any(newest in warning for warning in again.message.progress.warnings)


def test_a_late_writer_of_an_older_attempt_is_fenced(harness: TrainingHarness) -> None:
    config = harness.config("fenced", kind="bert")
    harness.store.put(f"{config.run_uri}/attempts/2.json", b"{}")
    fenced = harness.run(config)
    assert fenced.exit_codes == [ExitCode.FENCED, ExitCode.FENCED]
    assert "attempt 2" in fenced.message.error
    assert not harness.store.exists(f"{config.run_uri}/training.json")


def test_an_attempt_ends_if_nothing_could_be_stored_for_too_long(
    harness: TrainingHarness, killable: KillableStore
) -> None:
    checkpoint = {"everySteps": 5, "uploadTimeout": "15s"}
    config = harness.config("stale", kind="bert", training={"epochs": 2000}, checkpoint=checkpoint)
    assert config.prepared is not None
    there = ObjectStore.connect(killable.settings())
    harness.store.download_folder(config.prepared.dataset_uri, harness.folder / "moved")
    there.upload_folder(harness.folder / "moved", f"s3://{BUCKET}/data")
    prepared = config.prepared.model_copy(update={"dataset_uri": f"s3://{BUCKET}/data"})
    output = config.spec.output.model_copy(update={"uri": f"s3://{BUCKET}/stale"})
    moved = config.model_copy(
        update={
            "storage": killable.settings(),
            "prepared": prepared,
            "spec": config.spec.model_copy(update={"output": output}),
        }
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(harness.run, moved, **killable.access.env())
        until(lambda: list(there.list(f"{moved.run_uri}/checkpoints/manifests/")), within=60, what="a checkpoint")
        killable.kill()
        ended = running.result()
    assert ended.exit_codes == [ExitCode.STORAGE_UNREACHABLE] * 2
    assert "could not be stored within 15 s, the value of spec.checkpoint.uploadTimeout" in ended.message.error
    assert "uploadTimeout" in ended.message.advice


@pytest.mark.parametrize("kind", ["llama-overflow", "llama-steep"])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_attempt_with_step_and_advice(
    harness: TrainingHarness, kind: str
) -> None:
    """The weights overflow by construction, because the overflow of a learning rate depends on the processor."""
    harness.prepare(kind)
    diverged = harness.run(harness.config(f"diverged-{kind}", kind=kind, training={"learningRate": 1e-3}))
    assert diverged.exit_codes == [ExitCode.DIVERGED, ExitCode.DIVERGED], diverged.output
    assert "NaN or infinite at step 1 " in diverged.message.error
    assert "spec.training.learningRate (now 0.001)" in diverged.message.advice


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_validation_loss_that_is_not_finite_ends_the_attempt_as_diverged(harness: TrainingHarness, kind: str) -> None:
    config = harness.config(f"diverged-validation-{kind}", kind=kind)
    diverged = harness.run(config, target="train_ranks:train_rank_with_nan_weights")
    assert diverged.exit_codes == [ExitCode.DIVERGED, ExitCode.DIVERGED], diverged.output
    assert "validation loss" in diverged.message.error


def test_a_finite_loss_far_above_its_start_is_a_warning(harness: TrainingHarness) -> None:
    """The logits are huge by construction, because the effect of a learning rate depends on the processor."""
    config = harness.config("far-above", kind="llama")
    ended = harness.run(config, target="train_ranks:train_rank_with_huge_weights")
    assert ended.exit_codes == [0, 0], ended.output
    document = harness.store.get_json(f"{config.run_uri}/training.json")
    assert [text for text in document["warnings"] if "the training diverges" in text]


def test_logged_losses_are_sums_that_survive_a_restart(harness: TrainingHarness) -> None:
    """With this many steps, the first one and every tenth are logged; the kill is between two log lines."""
    long = {"training": {"maxSteps": 2001, "epochs": None}, "checkpoint": {"everySteps": 15}}
    through, config = (harness.config(name, kind="bert-dropout", **long) for name in ("sums-through", "sums"))
    assert harness.run(through, TEST_END="stop", TEST_END_STEP="31").exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert harness.run(config, TEST_END="kill", TEST_END_STEP="15").exit_codes == [-9, -9]
    again = harness.config("sums", kind="bert-dropout", attempt=2, **long)
    assert harness.run(again, TEST_END="stop", TEST_END_STEP="31").exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    losses = [entry for entry in harness.training_log(config) if "loss" in entry]
    assert [entry["step"] for entry in losses] == [1, 10, 20, 30]
    assert harness.training_log(config) == harness.training_log(through)


@pytest.fixture(scope="module")
def losses_of_a_whole_run(harness: TrainingHarness) -> list[float]:
    config = harness.config("world-through", kind="llama", batch=12, micro=1)
    assert harness.run(config).exit_codes == [0, 0]
    return harness.losses(config)


@pytest.mark.parametrize(("size", "other", "zero"), [(2, 1, 2), (1, 2, 3), (4, 2, 3), (2, 3, 2)])
def test_a_run_resumes_with_another_world_size_and_the_same_global_batches(
    harness: TrainingHarness, losses_of_a_whole_run: list[float], size: int, other: int, zero: int
) -> None:
    same = {"name": f"world-{size}-{other}", "kind": "llama", "batch": 12, "micro": 1}
    config = harness.config(**same, zero=3, world=size)
    stopped = harness.run(config, TEST_END="stop", TEST_END_STEP="2")
    assert stopped.exit_codes == [ExitCode.STOPPED] * size, stopped.output
    ended = harness.run(harness.config(**same, zero=zero, world=other, attempt=2))
    assert ended.exit_codes == [0] * other, ended.output
    assert harness.losses(config) == pytest.approx(losses_of_a_whole_run, rel=1e-6)


def test_a_run_resumes_with_another_zero_stage_and_offload(harness: TrainingHarness) -> None:
    """The spec of the attempt takes precedence over the choice of the prepare stage."""
    through = harness.config("stages-through", kind="llama", zero=2)
    assert harness.run(through).exit_codes == [0, 0]
    for attempt, (deepspeed, stage, stop) in enumerate(
        [
            ({"zeroStage": 1}, 1, 2),
            ({"zeroStage": 3, "offload": "OptimizerAndParameters"}, 3, 5),
            ({"offload": "Optimizer"}, 2, 0),
        ],
        start=1,
    ):
        config = harness.config("stages", kind="llama", zero=2, attempt=attempt, deepspeed=deepspeed)
        ends = {"TEST_END": "stop", "TEST_END_STEP": str(stop)} if stop else {}
        ended = harness.run(config, **ends)
        assert ended.exit_codes == ([ExitCode.STOPPED] * 2 if stop else [0, 0]), ended.output
        assert ended.message.progress is not None
        assert ended.message.progress.zero_stage == stage
    assert harness.losses(config) == pytest.approx(harness.losses(through), rel=1e-5)


def test_the_stage_reads_the_prepared_settings_from_the_record_of_the_run(harness: TrainingHarness) -> None:
    harness.prepare("bert", name="recorded")
    config = harness.config("recorded", kind="bert").model_copy(update={"prepared": None})
    attempt = harness.run(config, target=RUN_RANK)
    assert attempt.exit_codes == [0, 0], attempt.output
    progress = attempt.message.progress
    assert progress is not None
    assert {"import", "claim", "model", "engine", "steps", "evaluate", "save", "export"} <= set(progress.phase_seconds)
    assert progress.tokens > 0
    assert progress.first_step_time is not None
    assert progress.last_checkpoint is not None


def test_an_attempt_trains_with_its_own_learning_rate_and_not_with_that_of_the_checkpoint(
    harness: TrainingHarness,
) -> None:
    warmup = {"warmup": {"steps": 4}}
    first = harness.config("rate", kind="llama", training=warmup)
    assert harness.run(first, TEST_END="stop", TEST_END_STEP="2").exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    halved = {"learningRate": first.spec.training.peak_learning_rate / 2}
    again = harness.run(harness.config("rate", kind="llama", attempt=2, training=warmup | halved))
    assert again.exit_codes == [0, 0], again.output
    through = harness.config("rate-through", kind="llama", training=warmup)
    assert harness.run(through).exit_codes == [0, 0]
    rates, planned = (
        [entry["learning_rate"] for entry in harness.training_log(config) if "learning_rate" in entry]
        for config in (first, through)
    )
    resumed = int(harness.manifests(first)[0].partition("-")[0])
    assert rates == planned[:resumed] + [rate / 2 for rate in planned[resumed:]]


@pytest.mark.parametrize(("position", "shift"), [("absent", 0), ("two batches ahead", 2)])
def test_data_continues_at_the_position_of_the_manifest(harness: TrainingHarness, position: str, shift: int) -> None:
    """With a learning rate of almost 0, a loss depends only on its batch. Earlier versions wrote no position."""
    still = {"training": {"epochs": 3, "learningRate": 1e-12}}
    through, config = (harness.config(f"{name}-{shift}", kind="llama", **still) for name in ("data-through", "data"))
    assert harness.run(through).exit_codes == [0, 0]
    stopped = harness.run(config, TEST_END="stop", TEST_END_STEP="2")
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    [name] = harness.manifests(config)
    uri = f"{config.run_uri}/checkpoints/manifests/{name}.json"
    document = harness.store.get_json(uri)
    step = document["step"]
    assert "data_position" not in document, "it is the step, as trainers expect that do not know the field"
    change = {"data_position": step + shift} if shift else {}
    document = document | change
    harness.store.put(uri, json.dumps(document | {"digest": digest_of(document)}).encode())
    again = harness.run(harness.config(f"data-{shift}", kind="llama", attempt=2, **still))
    assert again.exit_codes == [0, 0], again.output
    found, expected = harness.losses(config), harness.losses(through)
    assert len(found) == len(expected), "the number of steps is that of the plan"
    assert found[step : len(found) - shift] == pytest.approx(expected[step + shift :], rel=1e-6)
    last = sorted(harness.manifests(config))[-1]
    saved = harness.store.get_json(f"{config.run_uri}/checkpoints/manifests/{last}.json")
    assert saved.get("data_position", saved["step"]) == saved["step"] + shift
