"""The prepare stage with servers that lack features."""

import pytest

import tiny_models
from finetune_trainer.store import ObjectStore
from prepare_fixture import PrepareFixture
from rows import classified, jsonl
from store_proxy import Conditions, StoreProxy


@pytest.mark.parametrize("conditions", [Conditions.IGNORED, Conditions.REFUSED])
def test_storage_without_conditional_writes_also_stores_data_sets(
    store_server, bucket, storage_settings, tmp_path, conditions
):
    with StoreProxy(store_server, conditions) as proxy:
        settings = proxy.settings()
        place = PrepareFixture(ObjectStore.connect(settings), bucket, settings, tmp_path)
        bert = tiny_models.save_tiny_bert(tmp_path / "bert")
        uri = place.put("a.jsonl", jsonl(classified(20)))
        first, second = (place.prepare(bert, {"train": [{"uri": uri}]}, separate_node=True) for _ in range(2))
    assert (first.dataset_digest, first.counts) == (second.dataset_digest, second.counts)
    assert (first.reused, second.reused) == (False, True)
