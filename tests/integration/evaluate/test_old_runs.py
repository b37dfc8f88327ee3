"""Deletion of the files of old runs, in a real object store."""

import pytest

from factories import make_job
from finetune_api.constants import Stage
from finetune_api.run_layout import PromotionLayout, RunLayout
from finetune_api.trainer_config import JobRef, StorageSettings, TrainerConfig
from finetune_api.validation import parse_job
from finetune_operator.policy.world import stage_config
from finetune_trainer.errors import AccessDeniedError, StorageProtocolError
from finetune_trainer.evaluate.old_runs import delete_old_runs
from finetune_trainer.promotion.records import PromotedModel, PromotionEntry, PromotionRecord
from finetune_trainer.promotion.storage import PromotionStorage

UID, OTHER = "1f3a9c42-0000", "1f3a9c43-0000"
FILES = ("run.json", "model/model.safetensors", "checkpoints/blobs/0f", "report.html")


def config_of(bucket: str, run: int, keep: int) -> TrainerConfig:
    job = parse_job(make_job(output={"uri": f"s3://{bucket}/out/", "keepRuns": keep}))
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": UID})})
    return stage_config(job, run, Stage.EVALUATE, 1, StorageSettings())


@pytest.mark.parametrize(
    ("current", "keep", "kept"),
    [(4, 2, (3, 4)), (4, 9, (1, 2, 3, 4)), (4, 1, (4,)), (2, 1, (2,)), (2, 2, (2, 4)), (5, 1, (5,))],
)
def test_the_current_run_and_the_newest_others_are_kept(store, bucket, current, keep, kept):
    output = f"s3://{bucket}/out"
    for number in range(1, 5):
        for uid in (UID, OTHER):
            for name in FILES:
                store.put(f"{RunLayout.of(output, number, uid).uri}/{name}", b"x")
    others = (f"{output}/runs/notes.txt", f"{output}/runs/r0001-1f3a9c42", f"{output}/datasets/0f/dataset.json")
    for uri in (*others, f"s3://{bucket}/out-2/runs/r0001-1f3a9c42/run.json"):
        store.put(uri, b"x")
    assert delete_old_runs(config_of(bucket, current, keep), store) == kept
    left = {info.uri for info in store.list(f"s3://{bucket}/")}
    ours = {number for number in range(1, 6) if f"{RunLayout.of(output, number, UID).uri}/run.json" in left}
    assert ours == set(kept) & set(range(1, 5))
    folders = [RunLayout.of(output, number, UID).uri for number in set(range(1, 5)) - set(kept)]
    assert not [uri for uri in left if uri.startswith(tuple(f"{folder}/" for folder in folders))]
    assert len(left) == 4 + len(FILES) * (4 + len(ours)), "nothing else was deleted"


def test_the_runs_of_the_promoted_model_and_of_the_one_before_it_are_kept(store, bucket):
    output = f"s3://{bucket}/out"
    folders = [RunLayout.of(output, number, UID).uri for number in range(1, 6)]
    for folder in folders:
        store.put(f"{folder}/run.json", b"{}")
    storage, record = PromotionStorage(store, PromotionLayout.of(output)), None
    for folder in folders[:3]:
        model = PromotedModel(uri=f"{folder}/model", digest="d")
        job = JobRef(namespace="default", name="job", uid=UID)
        entry = PromotionEntry(model=model, folder=folder, job=job, run=1, time="2026-01-01T00:00:00Z")
        record = PromotionRecord.after_promotion(record, entry, (), folder)
        assert storage.replace(storage.read(), record) is not None
    assert delete_old_runs(config_of(bucket, 5, 1), store) == (2, 3, 5)
    store.put(PromotionLayout.of(output).record, b"not a record")
    with pytest.raises(StorageProtocolError):
        delete_old_runs(config_of(bucket, 5, 1), store)
    assert len(list(store.list(f"{output}/runs/"))) == 3, "nothing was deleted"


def test_a_run_whose_deletion_fails_is_not_one_that_remains(store, bucket, monkeypatch):
    """A part of its files may be missing."""
    output, warnings = f"s3://{bucket}/out", []
    for number in range(1, 5):
        store.put(f"{RunLayout.of(output, number, UID).uri}/run.json", b"{}")
    refused, delete_many = RunLayout.of(output, 2, UID).uri, store.delete_many

    def delete(uris):
        if uris[0].startswith(refused):
            raise AccessDeniedError("the object is locked")
        delete_many(uris)

    monkeypatch.setattr(store, "delete_many", delete)
    assert delete_old_runs(config_of(bucket, 4, 1), store, warnings.append) == (4,)
    assert warnings == ["files of run 2 could not be deleted (spec.output.keepRuns): the object is locked"]
    left = {info.uri for info in store.list(f"{output}/runs/")}
    assert left == {f"{RunLayout.of(output, number, UID).uri}/run.json" for number in (2, 4)}
