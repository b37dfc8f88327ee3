"""The base model: downloads, checks, memory estimates, tokenizer, loading and export."""
