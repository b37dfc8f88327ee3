"""The base model: fetching, checking and estimating it, its tokenizer, loading and exporting it."""
