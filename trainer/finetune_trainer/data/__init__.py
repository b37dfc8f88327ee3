"""From files of records to token shards, and from token shards to batches.

`prepare` is the only story here; what decides something (splits, order, label names, formats) is a pure module of its
own. Only `sampler` and `collate` import torch.
"""
