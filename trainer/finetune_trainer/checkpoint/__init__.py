"""Checkpoints: the whole training state in object storage, committed by one manifest, readable by any other world.

`format` says what a checkpoint is, `stored` keeps it in storage, `upload` brings it there beside the training, `engine`
alone knows DeepSpeed's optimizers. `plane` and `saving` put them together for a training, `archive` for people. Bytes
are raw little-endian fp32 and JSON; nothing is ever unpickled.
"""
