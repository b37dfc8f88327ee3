"""Converts files of records to token shards, and token shards to batches.

`prepare` is the stage. Decisions (splits, order, label names, formats) are in pure modules. Only `sampler` and
`collate` import torch.
"""
