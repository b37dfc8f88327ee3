"""Checkpoints in object storage and their copies on the own host: claimed, listed, read, verified, removed."""
