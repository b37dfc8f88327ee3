"""The command line.

`finetune run` uses the reconcile function of the operator with a local cluster. The package does not import torch, so
that commands start quickly.
"""
