"""Reads the training state from DeepSpeed and torch, writes it back, and synchronizes it between ranks."""
