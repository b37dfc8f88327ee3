"""Reads the training state from DeepSpeed and torch, and writes it back."""
