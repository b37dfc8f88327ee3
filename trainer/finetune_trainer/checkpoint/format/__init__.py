"""What a checkpoint is, and what is said about it: values without any input or output."""
