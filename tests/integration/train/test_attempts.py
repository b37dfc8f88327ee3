"""How attempts end and how the next one goes on: stops, early stopping, damage, late writers, other worlds."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from finetune_api.exit_codes import ExitCode
from finetune_trainer.checkpoint.format.manifest import digest_of
from finetune_trainer.forkclient import RUN_RANK
from finetune_trainer.store import ObjectStore
from killable_store import BUCKET, KillableStore
from process_support import until
from train_lab import STEPS_PER_EPOCH, Lab


def test_all_stages_agree_on_the_loss_of_every_step(lab: Lab) -> None:
    """The head is new, and the base model has a larger one: both have to be the same under ZeRO-3, which builds the
    model in pieces."""
    logs = []
    for zero in range(4):
        config = lab.config(f"agree-{zero}", kind="bert", zero=zero, training={"maxSteps": 4, "epochs": None})
        assert lab.run(config).exit_codes == [0, 0]
        logs.append(lab.losses(config))
    for log in logs[1:]:
        assert log == pytest.approx(logs[0], rel=1e-5)


def test_a_base_without_gradient_checkpointing_is_trained_and_its_rows_follow_their_labels(
    lab: Lab, tmp_path: Path
) -> None:
    prepared = lab.prepare("bert-lite")
    assert prepared.labels == ("animal", "food")
    assert prepared.warnings == (
        "the base model's classifier is kept: it has the labels of the data",
        "AlbertForSequenceClassification does not support gradient checkpointing, so it is trained without it: "
        "training uses more memory",
    )
    still = {"maxSteps": 1, "epochs": None, "learningRate": 1e-12}
    config = lab.config("lite", kind="bert-lite", zero=3, world=1, training=still)
    assert config.spec.training.gradient_checkpointing
    attempt = lab.run(config)
    assert attempt.exit_codes == [0], attempt.output
    lab.store.download_folder(config.model_uri, tmp_path)
    before = load_file(lab.models / "bert-lite" / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys(), "no weight is stored under a name of earlier versions"
    assert after["classifier.weight"] == pytest.approx(before["classifier.weight"][::-1], abs=1e-6)


def test_a_stop_that_reaches_one_rank_stops_both_with_the_state_saved(lab: Lab) -> None:
    config = lab.config("stop", kind="bert")
    stopped = lab.run(config, TEST_END="stop", TEST_END_STEP="2", TEST_END_RANKS="1")
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert lab.manifests(config) == ["00000003-a0001"]
    assert [entry["step"] for entry in lab.training_log(config)] == [1, 2, 3]
    again = lab.run(lab.config("stop", kind="bert", attempt=2))
    assert again.exit_codes == [0, 0]
    assert again.message.progress is not None
    assert again.message.progress.resumed_from_step == 3
    assert again.message.progress.resumed_from.startswith("node-local cache ("), (
        "both attempts have the same cache folder"
    )
    assert again.message.progress.step == 2 * STEPS_PER_EPOCH


VALIDATED = {"kind": "bert-dropout", "micro": 1, "training": {"earlyStopping": {"patience": 3}}}
"""Two batches of the validation split for each rank."""


@pytest.fixture(scope="module")
def log_of_a_validated_run(lab: Lab) -> list[dict[str, float]]:
    config = lab.config("validated", **VALIDATED)
    assert lab.run(config).exit_codes == [0, 0]
    return lab.training_log(config)


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH], ids=["in the middle", "after the last step"])
def test_a_stop_interrupts_a_validation_which_the_next_attempt_does_again(
    lab: Lab, log_of_a_validated_run: list[dict[str, float]], step: int
) -> None:
    name = f"interrupted-{step}"
    ends = {"TEST_END": "stop-in-validation", "TEST_END_STEP": str(step), "TEST_END_RANKS": "1"}
    config = lab.config(name, **VALIDATED)
    stopped = lab.run(config, **ends)
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED], stopped.output
    assert lab.manifests(config)[-1] == f"{step:08d}-a0001"
    assert [entry for entry in lab.training_log(config) if "eval_loss" in entry and entry["step"] == step] == []
    again = lab.run(lab.config(name, **VALIDATED, attempt=2))
    assert again.exit_codes == [0, 0], again.output
    assert lab.training_log(config) == log_of_a_validated_run


def test_a_stop_before_the_model_is_built_is_a_clean_one(lab: Lab) -> None:
    stopped = lab.run(lab.config("stop-early", kind="bert"), TEST_END="stop", TEST_END_STEP="0", TEST_END_RANKS="0")
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert "before the model was loaded" in stopped.message.error


def test_a_run_whose_last_step_is_saved_is_only_exported(lab: Lab) -> None:
    config = lab.config("finished", kind="bert")
    last = str(2 * STEPS_PER_EPOCH - 1)
    assert lab.run(config, TEST_END="stop", TEST_END_STEP=last).exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert not lab.store.exists(f"{config.model_uri}/config.json")
    again = lab.run(lab.config("finished", kind="bert", attempt=2))
    assert again.exit_codes == [0, 0], again.output
    assert again.message.trained is not None
    assert again.message.trained.final_step == 2 * STEPS_PER_EPOCH
    assert lab.manifests(config) == ["00000010-a0001"]
    assert len(lab.losses(config)) == 2 * STEPS_PER_EPOCH
    assert lab.exported_loss(config) == pytest.approx(lab.evaluation_losses(config)[10], rel=1e-5)


def test_early_stopping_counts_on_over_a_restart_and_exports_the_best_state(lab: Lab) -> None:
    # Nothing improves by 100, so the first evaluation stays the best, and the patience ends at the fourth.
    training = {"epochs": 10, "earlyStopping": {"patience": 3, "minDelta": 100.0}}
    through = lab.config("early-through", kind="bert", training=training, evaluation={"everySteps": 2})
    whole = lab.run(through)
    assert whole.message.trained is not None
    assert (whole.message.trained.final_step, whole.message.trained.best_step) == (8, 2)
    assert whole.message.trained.stopped_early

    blocks = {"training": training, "evaluation": {"everySteps": 2}, "checkpoint": {"everySteps": 1}}
    killed = lab.run(lab.config("early", kind="bert", **blocks), TEST_END="kill", TEST_END_STEP="5")
    assert killed.exit_codes == [-9, -9]
    config = lab.config("early", kind="bert", attempt=2, **blocks)
    resumed = lab.run(config)
    assert resumed.exit_codes == [0, 0], resumed.output
    assert resumed.message.trained is not None
    assert resumed.message.trained.model_copy(update={"model_uri": ""}) == whole.message.trained.model_copy(
        update={"model_uri": ""}
    )
    assert lab.training_log(config) == lab.training_log(through)
    for each in (through, config):
        evaluated = lab.evaluation_losses(each)
        assert lab.exported_loss(each) == pytest.approx(evaluated[2], rel=1e-5), "the best state, of step 2"
        assert evaluated[8] != pytest.approx(evaluated[2], rel=1e-3), "the last state would pass as well"


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(lab: Lab) -> None:
    saves = {"checkpoint": {"everySteps": 2}}
    config = lab.config("damaged", kind="bert", **saves)
    assert lab.run(config, TEST_END="kill", TEST_END_STEP="4").exit_codes == [-9, -9]
    before, newest = lab.manifests(config)[-2:]  # where storage is slow, a save is left out
    manifest = lab.store.get_json(f"{config.run_uri}/checkpoints/manifests/{newest}.json")
    part = lab.store.get_json(f"{config.run_uri}/checkpoints/blobs/{manifest['parts'][1]['digest']}")
    blob = f"{config.run_uri}/checkpoints/blobs/{part['blobs'][0]}"
    content = bytearray(lab.store.get(blob))
    content[100] ^= 1
    lab.store.put(blob, bytes(content))
    shutil.rmtree(lab.cache / "checkpoints")  # as on another host
    again = lab.run(lab.config("damaged", kind="bert", attempt=2, **saves))
    assert again.exit_codes == [0, 0], again.output
    assert again.message.progress is not None
    assert again.message.progress.resumed_from_step == int(before.partition("-")[0])
    assert any(newest in warning for warning in again.message.progress.warnings)


def test_a_late_writer_of_an_older_attempt_is_fenced(lab: Lab) -> None:
    config = lab.config("fenced", kind="bert")
    lab.store.put(f"{config.run_uri}/attempts/2.json", b"{}")
    fenced = lab.run(config)
    assert fenced.exit_codes == [ExitCode.FENCED, ExitCode.FENCED]
    assert "attempt 2" in fenced.message.error
    assert not lab.store.exists(f"{config.run_uri}/training.json")


def test_an_attempt_ends_where_nothing_could_be_stored_for_too_long(lab: Lab, killable: KillableStore) -> None:
    checkpoint = {"everySteps": 5, "maxStaleness": "15s"}
    config = lab.config("stale", kind="bert", training={"epochs": 2000}, checkpoint=checkpoint)
    assert config.prepared is not None
    there = ObjectStore.connect(killable.settings())
    lab.store.download_folder(config.prepared.dataset_uri, lab.folder / "moved")
    there.upload_folder(lab.folder / "moved", f"s3://{BUCKET}/data")
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
        running = pool.submit(lab.run, moved, **killable.access.env())
        until(lambda: list(there.list(f"{moved.run_uri}/checkpoints/manifests/")), within=60, what="a checkpoint")
        killable.kill()
        ended = running.result()
    assert ended.exit_codes == [ExitCode.STORAGE_UNREACHABLE] * 2
    assert "could not be stored within 15 s, which is spec.checkpoint.maxStaleness" in ended.message.error
    assert "maxStaleness" in ended.message.advice


@pytest.mark.parametrize("kind", ["llama-overflow", "llama-steep"])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_attempt_with_step_and_advice(lab: Lab, kind: str) -> None:
    """The weights overflow by construction: which learning rate overflows depends on the processor."""
    lab.prepare(kind)
    diverged = lab.run(lab.config(f"diverged-{kind}", kind=kind, training={"learningRate": 1e-3}))
    assert diverged.exit_codes == [ExitCode.DIVERGED, ExitCode.DIVERGED], diverged.output
    assert "NaN or infinite at step 1 " in diverged.message.error
    assert "spec.training.learningRate (now 0.001)" in diverged.message.advice


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_validation_loss_that_is_not_finite_ends_the_attempt_as_diverged(lab: Lab, kind: str) -> None:
    config = lab.config(f"diverged-validation-{kind}", kind=kind)
    diverged = lab.run(config, target="train_ranks:train_rank_whose_weights_break")
    assert diverged.exit_codes == [ExitCode.DIVERGED, ExitCode.DIVERGED], diverged.output
    assert "validation loss" in diverged.message.error


def test_a_finite_loss_far_above_its_start_is_a_warning(lab: Lab) -> None:
    """The logits are huge by construction: what a learning rate makes of them depends on the processor."""
    config = lab.config("far-above", kind="llama")
    ended = lab.run(config, target="train_ranks:train_rank_whose_weights_grow")
    assert ended.exit_codes == [0, 0], ended.output
    document = lab.store.get_json(f"{config.run_uri}/training.json")
    assert [text for text in document["warnings"] if "the training diverges" in text]


def test_logged_losses_are_sums_that_survive_a_restart(lab: Lab) -> None:
    """With so many steps the first one and every tenth are logged; the kill comes between two log lines."""
    long = {"training": {"maxSteps": 2001, "epochs": None}, "checkpoint": {"everySteps": 15}}
    through, config = (lab.config(name, kind="bert-dropout", **long) for name in ("sums-through", "sums"))
    assert lab.run(through, TEST_END="stop", TEST_END_STEP="31").exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    assert lab.run(config, TEST_END="kill", TEST_END_STEP="15").exit_codes == [-9, -9]
    again = lab.config("sums", kind="bert-dropout", attempt=2, **long)
    assert lab.run(again, TEST_END="stop", TEST_END_STEP="31").exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    losses = [entry for entry in lab.training_log(config) if "loss" in entry]
    assert [entry["step"] for entry in losses] == [1, 10, 20, 30]
    assert lab.training_log(config) == lab.training_log(through)


@pytest.fixture(scope="module")
def losses_of_a_whole_run(lab: Lab) -> list[float]:
    config = lab.config("world-through", kind="llama", batch=12, micro=1)
    assert lab.run(config).exit_codes == [0, 0]
    return lab.losses(config)


@pytest.mark.parametrize(("size", "other", "zero"), [(2, 1, 2), (1, 2, 3), (4, 2, 3), (2, 3, 2)])
def test_a_run_goes_on_in_another_world_with_the_same_global_batches(
    lab: Lab, losses_of_a_whole_run: list[float], size: int, other: int, zero: int
) -> None:
    same = {"name": f"world-{size}-{other}", "kind": "llama", "batch": 12, "micro": 1}
    config = lab.config(**same, zero=3, world=size)
    stopped = lab.run(config, TEST_END="stop", TEST_END_STEP="2")
    assert stopped.exit_codes == [ExitCode.STOPPED] * size, stopped.output
    ended = lab.run(lab.config(**same, zero=zero, world=other, attempt=2))
    assert ended.exit_codes == [0] * other, ended.output
    assert lab.losses(config) == pytest.approx(losses_of_a_whole_run, rel=1e-6)


def test_a_run_goes_on_under_another_zero_stage_and_with_its_state_elsewhere(lab: Lab) -> None:
    """Whatever was chosen when the data was prepared: the spec of the attempt goes before it."""
    through = lab.config("stages-through", kind="llama", zero=2)
    assert lab.run(through).exit_codes == [0, 0]
    for attempt, (deepspeed, stage, stop) in enumerate(
        [
            ({"zeroStage": 1}, 1, 2),
            ({"zeroStage": 3, "offload": "OptimizerAndParameters"}, 3, 5),
            ({"offload": "Optimizer"}, 2, 0),
        ],
        start=1,
    ):
        config = lab.config("stages", kind="llama", zero=2, attempt=attempt, deepspeed=deepspeed)
        ends = {"TEST_END": "stop", "TEST_END_STEP": str(stop)} if stop else {}
        ended = lab.run(config, **ends)
        assert ended.exit_codes == ([ExitCode.STOPPED] * 2 if stop else [0, 0]), ended.output
        assert ended.message.progress is not None
        assert ended.message.progress.zero_stage == stage
    assert lab.losses(config) == pytest.approx(lab.losses(through), rel=1e-5)


def test_the_stage_reads_what_was_prepared_from_the_runs_record(lab: Lab) -> None:
    lab.prepare("bert", name="recorded")
    config = lab.config("recorded", kind="bert").model_copy(update={"prepared": None})
    attempt = lab.run(config, target=RUN_RANK)
    assert attempt.exit_codes == [0, 0], attempt.output
    progress = attempt.message.progress
    assert progress is not None
    assert {"import", "claim", "model", "engine", "steps", "evaluate", "save", "export"} <= set(progress.phase_seconds)
    assert progress.tokens > 0
    assert progress.first_step_time is not None
    assert progress.last_checkpoint is not None


def test_an_attempt_trains_with_its_own_learning_rate_and_not_with_that_of_the_checkpoint(lab: Lab) -> None:
    warmup = {"warmup": {"steps": 4}}
    first = lab.config("rate", kind="llama", training=warmup)
    assert lab.run(first, TEST_END="stop", TEST_END_STEP="2").exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    halved = {"learningRate": first.spec.training.learning_rate / 2}
    again = lab.run(lab.config("rate", kind="llama", attempt=2, training=warmup | halved))
    assert again.exit_codes == [0, 0], again.output
    through = lab.config("rate-through", kind="llama", training=warmup)
    assert lab.run(through).exit_codes == [0, 0]
    rates, planned = (
        [entry["learning_rate"] for entry in lab.training_log(config) if "learning_rate" in entry]
        for config in (first, through)
    )
    resumed = int(lab.manifests(first)[0].partition("-")[0])
    assert rates == planned[:resumed] + [rate / 2 for rate in planned[resumed:]]


@pytest.mark.parametrize(("position", "shift"), [("absent", 0), ("two batches ahead", 2)])
def test_data_continues_at_the_position_of_the_manifest(lab: Lab, position: str, shift: int) -> None:
    """With a learning rate of nearly 0 a loss depends on its batch alone. Earlier versions wrote no position."""
    still = {"training": {"epochs": 3, "learningRate": 1e-12}}
    through, config = (lab.config(f"{name}-{shift}", kind="llama", **still) for name in ("data-through", "data"))
    assert lab.run(through).exit_codes == [0, 0]
    stopped = lab.run(config, TEST_END="stop", TEST_END_STEP="2")
    assert stopped.exit_codes == [ExitCode.STOPPED, ExitCode.STOPPED]
    [name] = lab.manifests(config)
    uri = f"{config.run_uri}/checkpoints/manifests/{name}.json"
    document = lab.store.get_json(uri)
    step = document["step"]
    assert "data_position" not in document, "it is the step, as trainers expect that do not know the field"
    change = {"data_position": step + shift} if shift else {}
    document = document | change
    lab.store.put(uri, json.dumps(document | {"digest": digest_of(document)}).encode())
    again = lab.run(lab.config(f"data-{shift}", kind="llama", attempt=2, **still))
    assert again.exit_codes == [0, 0], again.output
    found, expected = lab.losses(config), lab.losses(through)
    assert len(found) == len(expected), "the number of steps is that of the plan"
    assert found[step : len(found) - shift] == pytest.approx(expected[step + shift :], rel=1e-6)
    last = sorted(lab.manifests(config))[-1]
    saved = lab.store.get_json(f"{config.run_uri}/checkpoints/manifests/{last}.json")
    assert saved.get("data_position", saved["step"]) == saved["step"] + shift
