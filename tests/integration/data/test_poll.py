"""Polls of source files in a real object store."""

import os
import subprocess
import sys
from pathlib import Path

import tiny_models
from finetune_api.constants import Env, Stage
from finetune_api.progress import TerminationMessage
from finetune_trainer.data.sources import listing_digest
from process_support import base_environment
from rows import classified, jsonl


def test_a_digest_of_the_listing_changes_with_the_files(place):
    model = tiny_models.save_tiny_bert(place.folder / "model")
    place.put("a/1.jsonl", jsonl(classified(40)))
    data = {"train": [{"uri": f"{place.uri}/data/a/*.jsonl"}], "format": "Classification"}
    prepared = place.prepare(model, data)
    source = place.config(model, data).spec.data

    def differs() -> bool:
        return listing_digest(source, place.store) != prepared.source_digest

    assert not differs()
    place.put("b/2.jsonl", b"{}")
    place.put("a/2.csv", b"text,label")
    assert not differs(), "other files do not matter"
    place.put("a/1.jsonl", jsonl(classified(41)[1:]))
    assert differs(), "another content of the same size, or another size"
    place.put("a/1.jsonl", jsonl(classified(40)))
    assert not differs()
    place.put("a/2.jsonl", jsonl(classified(1)))
    assert differs(), "one more file"
    place.store.delete(f"{place.uri}/data/a/2.jsonl")
    held_out = {**data, "test": {"sources": [{"uri": f"{place.uri}/data/a/1.jsonl"}]}}
    assert listing_digest(place.config(model, held_out).spec.data, place.store) != prepared.source_digest


def test_the_digest_of_a_listing_costs_one_listing(place):
    model = tiny_models.save_tiny_bert(place.folder / "model")
    for number in range(3):
        place.put(f"a/{number}.jsonl", jsonl(classified(2)))
    source = place.config(model, {"train": [{"uri": f"{place.uri}/data/a/*.jsonl"}]}).spec.data
    requests = []
    events = place.store._client.meta.events
    events.register("before-call.s3", lambda model, **_: requests.append(model.name), unique_id="requests")
    try:
        listing_digest(source, place.store)
    finally:
        events.unregister("before-call.s3", unique_id="requests")
    # An address with a pattern may also be the name of a file.
    assert sorted(set(requests)) == ["HeadBucket", "HeadObject", "ListObjectsV2"]
    assert len(requests) == 3


def poll(place, tmp_path: Path, uri: str) -> TerminationMessage:
    """Run the trainer as in a pod; returns its termination message."""
    model = tiny_models.save_tiny_bert(place.folder / "model")
    config = place.config(model, {"train": [{"uri": uri}]}).model_copy(update={"stage": Stage.POLL, "attempt": 1})
    (tmp_path / "config.json").write_text(config.to_json())
    environment = base_environment() | {
        **{name: value for name, value in os.environ.items() if name.startswith("AWS_")},
        Env.SCRATCH: str(tmp_path),
        Env.TERMINATION_LOG: str(tmp_path / "message"),
        Env.PROGRESS_PORT: "0",
    }
    command = [sys.executable, "-m", "finetune_trainer", "poll", "--config", str(tmp_path / "config.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    message = TerminationMessage.decode((tmp_path / "message").read_text())
    assert message is not None, done.stdout + done.stderr
    assert done.returncode == message.exit_code
    return message


def test_the_pod_of_a_poll_reports_the_digest_or_what_is_missing(place, tmp_path):
    uri = place.put("a.jsonl", jsonl(classified(3)))
    config = place.config(place.folder / "model", {"train": [{"uri": uri}]})
    message = poll(place, tmp_path, uri)
    assert message.polled is not None
    assert message.polled.source_digest == listing_digest(config.spec.data, place.store)
    missing = poll(place, tmp_path, f"{place.uri}/data/none-*.jsonl")
    assert (missing.exit_code, missing.polled) == (65, None)
    assert "matches no file" in missing.error
