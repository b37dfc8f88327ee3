"""A manifest, and the lineage of its run."""

from finetune_trainer.checkpoint.format.compatibility import Lineage
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
    job="default/mine (uid 1)",
    model_digest=MODEL,
    dataset_digest=DATA,
)
LINEAGE = Lineage(job="default/mine (uid 1)", model_digest=MODEL, dataset_digest=DATA)
