"""A method and a task that are added in files of their own work without an edit elsewhere."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from extensions import BRIER, MORE_SUPPORT, HeadOnly, MoreMethods, MoreSpec, registered
from factories import any_of, make_job
from finetune_api.support import SUPPORT
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Method, PruningAlgorithm, Task
from finetune_trainer.data.collate import Collator
from finetune_trainer.data.prepare import completed_facts, lighter_methods
from finetune_trainer.errors import BadConfigError, ModelUnusableError
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.pruning import PRUNERS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.inspect import ModelFacts, check_task, inspect_model
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_model
from finetune_trainer.model.weights import plan_weights
from finetune_trainer.registry import Registry
from finetune_trainer.tasks import TASKS
from train_configs import train_config

ROOTS = [str(Path(__file__).parents[3] / root) for root in ("operator", "trainer")]
LABELS = ("bad", "good")
KNOWN = ", ".join(sorted(METHODS))
WITH_ADAPTER = any_of(
    [f"method.{name}" for name, row in SUPPORT.methods.items() if ArtifactFormat.ADAPTER in row.formats]
)

NEW_METHOD = """
from typing import Any
from finetune_api.v1alpha1 import FullFineTune
from finetune_trainer.methods import METHODS, FineTuningMethod
from finetune_trainer.methods.base import ParameterCounts

@METHODS.register
class Nothing(FineTuningMethod[FullFineTune]):
    name, block, title, is_adapter = "nothing", FullFineTune, "nothing", False

    def parameters(self, sizes: Any, block: Any) -> ParameterCounts:
        return ParameterCounts(0, 0)

    def apply(self, model: Any, block: Any, task: Any, *, seed: int) -> Any:
        return model.requires_grad_(False)

    def merged(self, model: Any, weights: Any, *_: Any) -> Any:
        return model, dict(weights)
"""
NEW_PRUNER = """
from finetune_trainer.methods.pruning import PRUNERS, Pruner

@PRUNERS.register
class Nothing(Pruner):
    name, sets_zeros = "Nothing", False

    def note(self, *_):
        return ""
"""
NEW_TASK = """
from finetune_trainer.tasks import TASKS
from finetune_trainer.tasks.causal_lm import CausalLM

@TASKS.register
class Backwards(CausalLM):
    name = "Backwards"
"""


@pytest.fixture
def extended() -> Iterator[None]:
    with registered():
        yield


ADDED = {
    "methods": ("METHODS", NEW_METHOD, "nothing"),
    "methods.pruning": ("PRUNERS", NEW_PRUNER, "Nothing"),
    "tasks": ("TASKS", NEW_TASK, "Backwards"),
}
FIND = """
import importlib, json, sys
for package, folder, registry, name in json.loads(sys.argv[1]):
    module = importlib.import_module(f"finetune_trainer.{package}")
    module.__path__.append(folder)
    found = getattr(module, registry)
    print(json.dumps([found[name].name, *found]))
"""


def test_a_file_that_is_put_into_a_package_is_found(tmp_path: Path) -> None:
    """In a new process, because the registries of this one have been read."""
    arguments = []
    for package, (registry, source, name) in ADDED.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "added.py").write_text(source)
        arguments.append([package, str(tmp_path / package), registry, name])
    command = [sys.executable, "-c", FIND, json.dumps(arguments)]
    env = {"PYTHONPATH": ":".join(ROOTS)}
    found = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    known = {
        "methods": set(Method.blocks()),
        "methods.pruning": {str(algorithm) for algorithm in PruningAlgorithm},
        "tasks": {str(task) for task in Task},
    }
    for line, package in zip(found.stdout.splitlines(), ADDED, strict=True):
        first, *every = json.loads(line)
        name = ADDED[package][-1]
        assert (first, set(every)) == (name, known[package] | {name})


def test_what_can_be_written_in_a_spec_is_what_the_trainer_knows() -> None:
    assert set(METHODS) == set(Method.blocks())
    assert {name: METHODS[name].block for name in METHODS} == Method.blocks()
    assert set(TASKS) == set(Task)
    assert set(PRUNERS) == set(PruningAlgorithm)


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        (
            TASKS,
            "spec.model.task must be one of CausalLM, MaskedLM, Preference, SequenceClassification, "
            "TokenClassification, not Brier",
        ),
        (METHODS, f"spec.method must be one of {KNOWN}, not Brier"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(registry: Registry[Any], message: str) -> None:
    with pytest.raises(BadConfigError, match=message):
        registry["Brier"]


def test_a_name_cannot_be_taken_twice(extended: None) -> None:
    with pytest.raises(ValueError, match=r"spec\.method headOnly is defined twice"), registered():
        pass


@pytest.mark.parametrize(
    ("change", "refusals"),
    [
        ({}, []),
        (
            {"deepspeed": {"zeroStage": 3}},
            ["spec.deepspeed.zeroStage must be 0 or 1 or 2 with method.headOnly, not 3; write 0"],
        ),
        (
            {"output": {"formats": ["Adapter"]}},
            [
                f"spec.output.formats must not have Adapter without spec.{WITH_ADAPTER}; write [Merged], or set "
                f"{WITH_ADAPTER}"
            ],
        ),
        (
            {"training": {"earlyStopping": {"metric": "Accuracy"}}},
            [
                "spec.training.earlyStopping.metric must be a metric of probability forecasters, not Accuracy; "
                "write Loss"
            ],
        ),
    ],
)
def test_the_support_table_accepts_and_refuses_what_is_combined_with_them(
    change: dict[str, Any], refusals: list[str]
) -> None:
    spec = MoreSpec.model_validate(make_job(**change)["spec"] | {"method": {"headOnly": {}}})
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"task": BRIER})})
    assert [f"{path} {message}" for path, message in MORE_SUPPORT.refusals(spec)] == refusals


def test_lighter_methods_fit_task_and_formats_and_the_one_that_trains_most_comes_first(extended: None) -> None:
    facts = ModelFacts(
        model_type="bert",
        is_decoder=False,
        is_encoder_decoder=False,
        parameters=10**6,
        largest_parameter=10**5,
        linear=(("encoder.layer.0.attention.self.query.weight", (256, 256)),),
        hidden_size=256,
        layers=1,
        vocabulary=300,
        positions=512,
    )
    usable = {
        formats: list(
            lighter_methods(facts, 10**6, Task.SEQUENCE_CLASSIFICATION, formats, gradient_checkpointing=False)
        )
        for formats in ((ArtifactFormat.MERGED,), (ArtifactFormat.ADAPTER,))
    }
    merged = [name for name in usable[ArtifactFormat.MERGED,] if name in ("lora", "headOnly")]
    assert merged == ["lora", "headOnly"], "by what they train"
    assert "lora" in usable[ArtifactFormat.ADAPTER,]
    assert "headOnly" not in usable[ArtifactFormat.ADAPTER,]
    assert "headOnly" not in lighter_methods(
        facts, 10**6, Task.CAUSAL_LM, (ArtifactFormat.MERGED,), gradient_checkpointing=False
    )


def test_virtual_tokens_leave_the_data_less_room_but_never_none(tmp_path: Path) -> None:
    base = tiny_models.save_tiny("llama", tmp_path / "base")
    facts, plan = inspect_model(base, "file:///base"), plan_weights(base, "file:///base", Task.CAUSAL_LM)
    positions = facts.positions
    assert positions is not None
    assert completed_facts(facts, plan, "prefix", 10).positions == positions - 10
    assert completed_facts(facts, plan, "prefix", positions - 2).positions == 2
    with pytest.raises(BadConfigError, match=f"prefix must leave room for the data: it takes {positions - 1}") as error:
        completed_facts(facts, plan, "prefix", positions - 1)
    assert f"at most {positions - 2}" in error.value.advice


def test_a_model_is_checked_trained_exported_and_loaded_with_them(extended: None, tmp_path: Path) -> None:
    base = tiny_models.save_tiny("bert", tmp_path / "base")
    check_task(inspect_model(base, "file:///base"), "file:///base", BRIER)
    config = train_config(prepared={"task": BRIER})
    spec = config.spec.model_copy(update={"method": MoreMethods(head_only=HeadOnly())})
    config = config.model_copy(update={"spec": spec})
    method, task = METHODS[spec.method.name], TASKS[BRIER]
    model: Any = load_model(base, task=BRIER, labels=LABELS, dtype=Dtype.FLOAT32, seed=1)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trained = method.apply(model, spec.method.block, task, seed=1)
    rows = [{"input_ids": [40 + row, 50, 60], "labels": row % 2} for row in range(8)]
    batch = Collator(0, BRIER)(rows)
    inputs = {name: batch[name] for name in task.model_inputs}
    optimizer = torch.optim.SGD([value for value in trained.parameters() if value.requires_grad], lr=0.5)
    losses = []
    for _ in range(5):
        loss = task.loss(trained(**inputs).logits, batch) / task.targets(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    changed = {name for name, value in trained.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    weights = {name: value.detach() for name, value in trained.named_parameters()}
    write_folder(ArtifactFormat.MERGED, trained, weights, tmp_path / "model", config=config, base=base)
    assert config.prepared is not None
    again = reload_model(tmp_path / "model", "s3://bucket/model", config.prepared)
    torch.testing.assert_close(again.eval()(**inputs).logits, trained.eval()(**inputs).logits)


def test_a_model_without_such_a_head_is_refused(extended: None, tmp_path: Path) -> None:
    facts = inspect_model(tiny_models.save_tiny("bert", tmp_path / "base"), "file:///base")
    with pytest.raises(ModelUnusableError, match="has no Brier head for it"):
        check_task(type(facts)(**{**vars(facts), "model_type": "clip_vision_model"}), "file:///base", BRIER)
