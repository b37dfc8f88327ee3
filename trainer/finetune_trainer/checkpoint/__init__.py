"""Checkpoints: the complete training state in object storage, committed by a manifest, loadable with any world size.

`format` defines the checkpoint format, `stored` reads and writes storage, `upload` runs the uploader process, and only
`engine` depends on DeepSpeed's optimizers. Training uses `manager`, the command line uses `archive`. Blobs are raw
little-endian fp32 and JSON; nothing is ever unpickled.
"""
