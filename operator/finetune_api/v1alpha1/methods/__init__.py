"""The blocks of `spec.method`, one file per fine-tuning method."""
