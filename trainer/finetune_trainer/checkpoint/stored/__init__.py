"""Checkpoints in object storage and in the node-local cache: claims, listing, reading, verification and removal."""
