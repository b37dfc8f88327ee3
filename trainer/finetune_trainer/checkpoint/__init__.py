"""Checkpoints: the whole training state in object storage, committed by one manifest, loadable with any world size.

`format` defines what a checkpoint is, `stored` reads and writes storage, `upload` runs the uploader process, and only
`engine` knows DeepSpeed's optimizers. A training uses `manager`, the command line uses `archive`. Blobs are raw
little-endian fp32 and JSON; nothing is ever unpickled.
"""
