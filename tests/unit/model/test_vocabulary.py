"""New tokens: rows that are the mean of their pieces, in every matrix of the model, and nothing else changes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import tiny_models
from finetune_api.v1alpha1 import ArtifactFormat, Dtype, Lora, Task
from finetune_trainer.errors import BadConfigError, ModelUnusableError
from finetune_trainer.methods import METHODS
from finetune_trainer.model.export import write_folder
from finetune_trainer.model.fetch import ModelFolder
from finetune_trainer.model.inspect import inspect_model
from finetune_trainer.model.load import load_model
from finetune_trainer.model.reload import reload_adapter, reload_model
from finetune_trainer.model.vocabulary import Forms, choose_tokens, note_of, write_extended
from finetune_trainer.model.weights import plan_weights
from finetune_trainer.new_tokens import VOCABULARY_FILE, NewTokens, read_new_tokens
from finetune_trainer.tasks import TASKS
from train_configs import train_config

WORDS = ("myocarditis", "COVID-19", "naïve")
URI = "s3://bucket/model"
DECODERS = ("llama", "llama-tied", "gpt2", "gemma", "gpt_neox")
ENCODERS = ("bert", "distilbert", "albert", "roberta")


def extended(folder: Path, target: Path, words: tuple[str, ...] = WORDS, task: Task = Task.CAUSAL_LM) -> ModelFolder:
    extension = choose_tokens(Forms(folder, URI), words, [], 0, URI)
    return write_extended(folder, URI, task, plan_weights(folder, URI, task), extension, target)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("llama", tmp_path_factory.mktemp("llama"))


def assert_means(before: torch.Tensor, after: torch.Tensor, added: NewTokens) -> None:
    assert torch.equal(after[: len(before)], before)
    assert len(after) == len(before) + len(added.tokens)
    for token in added.tokens:
        mean = sum(before[piece].double() for piece in token.pieces) / len(token.pieces)
        assert torch.equal(after[token.id], mean.to(before.dtype))


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_every_new_row_of_input_and_output_is_the_mean_of_its_pieces(family: str, tmp_path: Path) -> None:
    base = tiny_models.save_tiny(family, tmp_path / "base")
    is_decoder = family in DECODERS
    made = extended(base, tmp_path / "made", task=Task.CAUSAL_LM if is_decoder else Task.SEQUENCE_CLASSIFICATION)
    kind: Any = AutoModelForCausalLM if is_decoder else AutoModel
    before, after = (kind.from_pretrained(folder) for folder in (base, made.path))
    added = read_new_tokens(made.path)
    assert {token.text.strip() for token in added.tokens} == {*WORDS}
    for find in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, find)(), getattr(after, find)()
        if old is not None:
            assert_means(old.weight, new.weight, added)
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert after.config.vocab_size == len(tokenizer) == before.config.vocab_size + len(added.tokens)
    if is_decoder:
        tied = before.get_output_embeddings().weight is before.get_input_embeddings().weight
        assert tied == (after.get_output_embeddings().weight is after.get_input_embeddings().weight)


LORA_FAMILIES = {
    "llama": (Task.CAUSAL_LM, 2),  # matrices with rows of tokens
    "llama-tied": (Task.CAUSAL_LM, 1),
    "gpt2": (Task.CAUSAL_LM, 1),
    "bert": (Task.SEQUENCE_CLASSIFICATION, 1),
}


@pytest.mark.parametrize("variant", ["LoRA", "DoRA"])
@pytest.mark.parametrize("family", LORA_FAMILIES)
def test_lora_trains_the_new_rows_and_no_other_ones_and_the_merged_model_is_the_trained_one(
    family: str, variant: str, tmp_path: Path
) -> None:
    task, matrices = LORA_FAMILIES[family]
    folder = extended(tiny_models.save_tiny(family, tmp_path / "base"), tmp_path / "made", task=task).path
    new = [token.id for token in read_new_tokens(folder).tokens]
    labels = ("a", "b") if task is Task.SEQUENCE_CLASSIFICATION else ()
    ids = torch.tensor([[5, new[0], 41, new[-1], 43, 2], [5, 60, new[1], 62, 63, 2]])
    config = train_config(
        model={"uri": f"file://{folder}"},
        method={"lora": {"variant": variant}},
        prepared={"task": task, "labels": labels},
    )
    method, block, prepared = METHODS["lora"], config.spec.method.block, config.prepared
    assert prepared is not None

    def fresh(seed: int = 3) -> Any:
        return load_model(folder, task=task, labels=labels, dtype=Dtype.FLOAT32, seed=seed)

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    method.check(folder, block, TASKS[task])
    model: Any = method.apply(fresh(), block, TASKS[task], seed=1)
    torch.testing.assert_close(logits(model), logits(fresh()))
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    rows = [value for name, value in weights.items() if "trainable_tokens" in name]
    assert sum(map(len, rows)) == matrices * len(new)
    facts = replace(inspect_model(folder, URI), new_rows=matrices * len(new))
    counted = sum(value.numel() for name, value in weights.items() if ".modules_to_save." not in name)
    assert counted <= method.parameters(facts, block).trained <= counted * (1.0 if variant == "LoRA" else 1.1)

    torch.manual_seed(1)
    for value in weights.values():
        value.add_(0.1 * torch.randn_like(value))
    trained = logits(model)
    for artifact in (ArtifactFormat.MERGED, ArtifactFormat.ADAPTER):
        write_folder(artifact, model, weights, tmp_path / artifact, config=config, base=folder)
    merged = reload_model(tmp_path / "Merged", "model", prepared)
    torch.testing.assert_close(logits(merged), trained)
    again = reload_adapter(fresh(4), tmp_path / "Adapter", "adapter", prepared, method)
    torch.testing.assert_close(logits(again), trained)
    before, after = (one.get_input_embeddings().weight for one in (fresh(), merged))
    changed = (before != after).any(dim=1).nonzero().flatten()
    assert changed.tolist() == new


@pytest.mark.parametrize(
    ("family", "target"), [("llama", "lm_head"), ("llama-tied", "embed_tokens"), ("llama", "model.embed_tokens")]
)
def test_a_layer_with_new_rows_is_no_target_of_lora(family: str, target: str, tmp_path: Path) -> None:
    folder = extended(tiny_models.save_tiny(family, tmp_path / "base"), tmp_path / "made").path
    with pytest.raises(
        BadConfigError, match=rf"must not name {target.rsplit('.', maxsplit=1)[-1]} with spec.model.vocabulary"
    ):
        METHODS["lora"].check(folder, Lora(target_modules=("q_proj", target)), TASKS[Task.CAUSAL_LM])


def test_lora_does_not_tie_an_output_layer_that_only_config_json_ties(llama: Path, tmp_path: Path) -> None:
    folder = extended(llama, tmp_path / "made").path
    model: Any = load_model(folder, task=Task.CAUSAL_LM, labels=(), dtype=Dtype.FLOAT32, seed=1)
    model.config.tie_word_embeddings = True
    with pytest.raises(BadConfigError, match="ties lm_head to the embeddings, but its files have another matrix"):
        METHODS["lora"].apply(model, Lora(), TASKS[Task.CAUSAL_LM], seed=1)


def test_words_are_one_token_each_and_pieces_restore_the_tokens_of_the_base_model(llama: Path, tmp_path: Path) -> None:
    made = extended(llama, tmp_path / "made")
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (llama, made.path))
    added = read_new_tokens(made.path)
    for text in ("myocarditis after COVID-19", "a (COVID-19) is a naïve fox.\nmyocarditis", "the quick brown fox"):
        ids = new(text)["input_ids"]
        assert [piece for token in ids for piece in added.pieces.get(token, (token,))] == old(text)["input_ids"]
        assert new.decode(ids) == text
    assert len(new(" myocarditis")["input_ids"]) == len(new("myocarditis")["input_ids"]) == 1


def test_rows_in_reserve_are_used_before_new_ones_are_added(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model.resize_token_embeddings(len(tokenizer) + 59)
    padded = tmp_path / "padded"
    model.save_pretrained(padded)
    tokenizer.save_pretrained(padded)
    made = extended(padded, tmp_path / "made")
    after = AutoModelForCausalLM.from_pretrained(made.path)
    assert after.config.vocab_size == len(tokenizer) + 59
    before = model.get_input_embeddings().weight
    for token in read_new_tokens(made.path).tokens:
        mean = sum(before[piece].double() for piece in token.pieces) / len(token.pieces)
        assert torch.equal(after.get_input_embeddings().weight[token.id], mean.float())


def test_models_in_several_files_and_16_bits_are_extended(llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    base = tmp_path / "base"
    model.save_pretrained(base, max_shard_size="40KB")
    AutoTokenizer.from_pretrained(llama).save_pretrained(base)
    made = extended(base, tmp_path / "made")
    index = json.loads((made.path / "model.safetensors.index.json").read_text())
    assert len({*index["weight_map"].values()}) > 1
    size = sum(
        value.nbytes for name in {*index["weight_map"].values()} for value in load_file(made.path / name).values()
    )
    assert index["metadata"]["total_size"] == size
    after = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.bfloat16)
    assert_means(model.lm_head.weight, after.lm_head.weight, read_new_tokens(made.path))
    assert torch.equal(after.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)


def test_the_result_is_the_same_every_time(llama: Path, tmp_path: Path) -> None:
    first, second = (extended(llama, tmp_path / name) for name in ("first", "second"))
    assert first.digest == second.digest
    assert VOCABULARY_FILE in {file.name for file in first.listing.files}
    assert extended(llama, tmp_path / "third", WORDS[:2]).digest != first.digest


def test_known_words_are_named_and_a_vocabulary_that_adds_nothing_is_refused(llama: Path) -> None:
    forms = Forms(llama, URI)
    extension = choose_tokens(forms, ("the", "myocarditis"), [], 0, URI)
    assert note_of(extension, URI) == f"spec.model.vocabulary.add: 'the' is in the vocabulary of {URI}"
    assert {token.text for token in extension.tokens.tokens} == {" myocarditis", "myocarditis"}
    with pytest.raises(BadConfigError, match="must add at least one token: 'the', 'film' are in the vocabulary of s3"):
        choose_tokens(forms, ("the", "film"), [], 0, URI)
    with pytest.raises(BadConfigError, match="must add at least one token: no word of the training split can be"):
        choose_tokens(forms, (), ["the"], 5, URI)


@pytest.mark.parametrize("word", ["</s>", "x</s>y", "<|im_end|>"])
def test_words_with_special_tokens_are_refused(llama: Path, word: str) -> None:
    with pytest.raises(BadConfigError, match="cannot read it as one token"):
        choose_tokens(Forms(llama, URI), (word,), [], 0, URI)


def test_learned_forms_are_taken_in_order_up_to_the_number(llama: Path) -> None:
    learned = [" myocarditis", " the", " bradycardia", " cheese"]
    extension = choose_tokens(Forms(llama, URI), ("horse",), learned, 2, URI)
    assert [token.text for token in extension.tokens.tokens] == [" horse", "horse", " myocarditis", " bradycardia"]


def test_weights_that_cannot_be_found_are_refused(llama: Path, tmp_path: Path) -> None:
    extension = choose_tokens(Forms(llama, URI), WORDS, [], 0, URI)
    plan = plan_weights(llama, URI, Task.CAUSAL_LM)
    weights = load_file(llama / "model.safetensors")
    folder = tmp_path / "renamed"
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    (folder / "config.json").write_bytes((llama / "config.json").read_bytes())
    weights["other"] = weights["elsewhere"] = weights.pop("lm_head.weight").clone()
    weights["other"] = weights["other"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnusableError, match=r"cannot extend .* lm_head.weight is not in the weight files"):
        write_extended(folder, URI, Task.CAUSAL_LM, plan, extension, tmp_path / "made")
