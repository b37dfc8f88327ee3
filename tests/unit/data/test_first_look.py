"""What `finetune init` reads of the files that an address names."""

import pytest
from ruamel.yaml import YAML

import tiny_models
from finetune_cli.first_job import job_text
from finetune_trainer.data import first_look
from finetune_trainer.data.first_look import look_at
from rows import classified, jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return f"file://{tiny_models.save_tiny_bert(tmp_path_factory.mktemp('model'))}"


@pytest.mark.parametrize(
    ("sizes", "records", "is_whole"),
    [((5,), 5, True), ((0, 3, 4), 7, True), ((8, 8, 8), 20, False), ((25, 1), 20, False)],
)
def test_the_records_of_all_files_are_read_in_order(tmp_path, monkeypatch, model, sizes, records, is_whole):
    monkeypatch.setattr(first_look, "MAX_RECORDS", 20)
    rows = [{**row, "label": f"label{number}"} for number, row in enumerate(classified(sum(sizes)))]
    done = 0
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.jsonl").write_bytes(jsonl(rows[done : done + size]))
        done += size
    look = look_at(f"file://{tmp_path}/*.jsonl", model, {}, None, tmp_path / "cache")
    assert (look.records, look.is_whole) == (records, is_whole)
    assert set(look.labels) == {f"label{number}" for number in range(records)}


@pytest.mark.parametrize(("family", "task"), [("bert", "MaskedLM"), ("llama", None)])
def test_the_first_job_of_an_encoder_for_texts_names_the_task(tmp_path, family, task):
    save = tiny_models.save_tiny if task is None else tiny_models.save_tiny_masked
    folder = save(family, tmp_path / "model")
    (tmp_path / "texts.jsonl").write_bytes(jsonl([{"text": row["text"]} for row in classified(9)]))
    data, base = f"file://{tmp_path}/texts.jsonl", f"file://{folder}"
    job = YAML(typ="safe").load(job_text(look_at(data, base, {}, None, tmp_path / "cache"), data=data, model=base))
    assert job["spec"]["model"].get("task") == task
    assert job["spec"]["data"]["format"] == "Text"
