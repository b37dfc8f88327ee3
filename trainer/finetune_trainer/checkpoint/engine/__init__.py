"""The state of a training inside its ranks: read out of DeepSpeed and torch, written back, agreed on."""
