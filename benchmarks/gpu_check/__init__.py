"""Checks of the trainer on one CUDA GPU, which also run on the CPU."""
