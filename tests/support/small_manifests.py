"""A manifest, and the preparation of the run that it belongs to."""

from finetune_api.trainer_config import Prepared, SplitCounts
from finetune_api.v1alpha1 import DataFormat, Dtype, Packing, Task
from finetune_trainer.checkpoint.format.manifest import Manifest, PartRef

MODEL, DATA, OTHER = "a1" * 32, "b2" * 32, "c3" * 32
MANIFEST = Manifest(
    step=12,
    attempt=1,
    run=1,
    time="2026-01-01T00:00:00Z",
    world_size=1,
    zero_stage=2,
    blob_bytes=64,
    parts=(PartRef(rank=0, digest="d"),),
    state="s",
    model_digest=MODEL,
    dataset_digest=DATA,
)
PREPARED = Prepared(
    dataset_uri="s3://bucket/data",
    dataset_digest=DATA,
    model_digest=MODEL,
    format=DataFormat.TEXT,
    task=Task.CAUSAL_LM,
    dtype=Dtype.FLOAT32,
    packing=Packing.PADDED,
    zero_stage=2,
    counts=SplitCounts(train=1),
)
