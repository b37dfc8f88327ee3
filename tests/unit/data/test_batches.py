import numpy as np
import torch

from finetune_api.v1alpha1 import Task
from finetune_trainer.data.collate import Collator


def row(tokens, labels):
    return {"input_ids": np.array(tokens, dtype=np.int64), "labels": labels}


def test_language_model_rows_are_padded_with_labels_that_carry_no_loss():
    rows = [row([5, 6, 7], np.array([-100, 6, 7])), row([8], np.array([8]))]
    batch = Collator(0, Task.CAUSAL_LM)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_the_width_is_rounded_up_to_the_multiple():
    batch = Collator(9, Task.SEQUENCE_CLASSIFICATION, pad_to_multiple_of=8)([row([1] * 9, 2), row([1], 0)])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][1].tolist() == [1, *[9] * 15]
    assert batch["labels"].tolist() == [2, 0]
