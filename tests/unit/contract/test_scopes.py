"""What a change of each spec field causes: every field has a scope, and hashes follow from the scopes."""

from typing import Any

import pytest

from factories import make_job
from finetune_api.scopes import paths, scopes, spec_hash, with_scopes
from finetune_api.v1alpha1 import Scope, Spec
from finetune_api.validation import parse_job


def spec_of(**blocks: Any) -> Spec:
    return parse_job(make_job(**blocks)).spec


def changed_scopes(before: Spec, after: Spec) -> set[Scope]:
    return {scope for scope in Scope if spec_hash(before, {scope}) != spec_hash(after, {scope})}


def test_every_leaf_of_the_spec_has_a_scope_and_the_entries_of_a_list_have_one() -> None:
    assert len(scopes()) > 80, "the walk must reach every block"
    by_list: dict[str, set[Scope]] = {}
    for path, scope in scopes().items():
        if "[]" in path:
            by_list.setdefault(path.partition("[]")[0], set()).add(scope)
    assert {path: found for path, found in by_list.items() if len(found) > 1} == {}


def test_the_paths_of_all_scopes_together_cover_every_leaf_once() -> None:
    covers = [path for scope in Scope for path in paths(scope)]
    for leaf in scopes():
        above = [path for path in covers if leaf == path or leaf.startswith((f"{path}.", f"{path}["))]
        assert len(above) == 1, leaf


GENERAL = {"name": "general", "sources": [{"uri": "s3://bucket/general.jsonl"}]}
CHANGES: list[tuple[dict[str, Any], set[Scope]]] = [
    ({}, set()),
    ({"data": {"maxLength": 64}}, {Scope.DATA}),
    ({"data": {"validation": {"fraction": 0.2}}}, {Scope.DATA}),
    ({"data": {"train": [{"uri": "s3://bucket/other.jsonl"}]}}, {Scope.DATA}),
    ({"data": {"fewShot": {"perClass": 8}}}, {Scope.DATA}),
    ({"data": {"train": [{"uri": "s3://bucket/data/train.jsonl", "weight": 2}]}}, {Scope.DATA}),
    ({"data": {"augmentation": {"methods": ["WordSwap"]}}}, {Scope.DATA}),
    ({"model": {"uri": "s3://bucket/other"}}, {Scope.DATA}),
    ({"model": {"vocabulary": {"learn": 8}}}, {Scope.DATA}),
    ({"training": {"seed": 7}}, {Scope.DATA}),
    ({"training": {"learningRate": 0.5}}, {Scope.RUN}),
    ({"training": {"earlyStopping": {}}}, {Scope.RUN}),
    ({"method": {"full": {"freeze": {"embeddings": True}}}}, {Scope.RUN}),
    ({"method": {"full": {"pruning": {"algorithm": "Magnitude", "sparsity": 0.5}}}}, {Scope.RUN}),
    ({"training": {"scheduleOptions": {"minLearningRateRatio": 0.1}}}, {Scope.RUN}),
    ({"method": {"lora": {}}}, {Scope.RUN}),
    ({"training": {"batching": "Padded"}}, {Scope.RUN}),
    ({"runNonce": "again"}, {Scope.RUN}),
    ({"training": {"microBatchSize": 1}}, {Scope.ATTEMPT}),
    ({"workers": {"nodes": 2}}, {Scope.ATTEMPT}),
    ({"workers": {"env": [{"name": "A", "value": "b"}]}}, {Scope.ATTEMPT}),
    ({"workers": {"cache": {"claimName": "models"}}}, {Scope.ATTEMPT}),
    ({"checkpoint": {"keepLast": 3}}, {Scope.ATTEMPT}),
    ({"evaluation": {"maxNewTokens": 128}}, {Scope.EVALUATION}),
    ({"evaluation": {"baseModel": False}}, {Scope.EVALUATION}),
    ({"evaluation": {"simpleBaselines": ["MajorityClass"]}}, {Scope.EVALUATION}),
    ({"evaluation": {"simpleBaselines": []}}, {Scope.EVALUATION}),
    ({"evaluation": {"regressionSets": [GENERAL]}}, {Scope.EVALUATION}),
    ({"evaluation": {"promote": {}}}, {Scope.EVALUATION}),
    ({"evaluation": {"promote": {"thresholds": [{"metric": "Accuracy", "min": 0.9}]}}}, {Scope.EVALUATION}),
    ({"method": {"lora": {}}, "output": {"formats": ["Merged", "Adapter"]}}, {Scope.RUN, Scope.EVALUATION}),
    ({"output": {"formats": ["Merged", "Int8"]}}, {Scope.EVALUATION}),
    ({"suspend": True}, {Scope.NOW}),
    ({"restart": {"maxRestarts": 9}}, {Scope.NOW}),
]


GPUS = {"gpusPerNode": 1, "gpuMemory": "80Gi"}


@pytest.mark.parametrize(
    ("workers", "expected"),
    [({"gpusPerNode": 1}, set()), (GPUS, {Scope.ATTEMPT})],
    ids=["not chosen, as in stored jobs of earlier versions", "chosen if it is absent"],
)
def test_no_offload_is_a_change_only_where_one_may_be_chosen(workers: dict[str, Any], expected: set[Scope]) -> None:
    written = spec_of(workers=workers, deepspeed={"offload": "None"})
    assert changed_scopes(spec_of(workers=workers), written) == expected


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[str(change) for change, _ in CHANGES])
def test_a_change_affects_only_the_hash_of_its_scope(change: dict[str, Any], expected: set[Scope]) -> None:
    assert changed_scopes(spec_of(), spec_of(**change)) == expected


SPELLED_OUT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"method": {"full": {}}}),
    ({}, {"method": {"full": {"layerLearningRateDecay": 1.0}}}),
    ({}, {"output": {"formats": ["Merged"]}}),
    ({}, {"evaluation": {"maxNewTokens": 64}, "checkpoint": {}, "workers": {"resources": {}}}),
    ({}, {"training": {"epochs": 3}}),
    ({}, {"data": {"train": [{"uri": "s3://bucket/data/train.jsonl", "weight": 1}]}}),
    ({}, {"evaluation": {"regressionSets": []}}),
    ({}, {"training": {"warmup": {}}}),
    ({}, {"training": {"scheduleOptions": {"minLearningRateRatio": 0.0}}}),
    ({}, {"training": {"optimizer": {"name": "AdamW", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}}}),
    (
        {"training": {"learningRateSchedule": "Polynomial"}},
        {"training": {"learningRateSchedule": "Polynomial", "scheduleOptions": {"power": 2}}},
    ),
    ({}, {"data": {"test": {"fraction": 0.1}, "columns": {}}}),
    ({}, {"checkpoint": {"maxLostWork": "10m"}}),
    ({"method": {"lora": {}}}, {"method": {"lora": {"rank": 16, "alpha": 32}}}),
    ({"method": {"lora": {"rank": 4}}}, {"method": {"lora": {"rank": 4, "alpha": 8}}}),
    ({"method": {"lora": {}}}, {"method": {"lora": {"learningRateRatio": 1}}}),
    ({"workers": {"minNodes": 1}}, {"workers": {"minNodes": 1, "startTimeout": "5m"}}),
]


@pytest.mark.parametrize(("before", "after"), SPELLED_OUT, ids=[str(after) for _, after in SPELLED_OUT])
def test_spelling_out_a_default_changes_nothing(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert changed_scopes(spec_of(**before), spec_of(**after)) == set()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"training": {"maxSteps": 5}}, {"training": {"epochs": 3}}),
        ({"checkpoint": {"everySteps": 5}}, {"checkpoint": {"maxLostWork": "10m"}}),
        ({"method": {"lora": {"rank": 4}}}, {"method": {"lora": {"rank": 4, "alpha": 4}}}),
    ],
)
def test_a_value_that_only_resembles_a_default_is_a_change(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert changed_scopes(spec_of(**before), spec_of(**after)) != set()


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_the_values_of_some_scopes_are_taken_from_another_spec(change: dict[str, Any], expected: set[Scope]) -> None:
    wanted = {Scope.DATA, Scope.RUN}
    before, after = spec_of(), spec_of(**change)
    combined = with_scopes(after, before, wanted)
    assert changed_scopes(before, combined) == expected - wanted
    assert changed_scopes(after, combined) == expected & wanted
