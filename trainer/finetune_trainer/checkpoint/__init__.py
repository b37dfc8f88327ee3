"""Checkpoints: the whole training state in object storage, committed by one manifest, readable by any other world.

Pure: `layout` (who holds which elements of which parameter) and `manifest` (what a checkpoint consists of).
`fragments` alone knows DeepSpeed's optimizers. Bytes are raw little-endian fp32 and JSON; nothing is ever unpickled.
"""
