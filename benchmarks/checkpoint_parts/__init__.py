"""Parts of checkpoints.py: a link with a stated rate, two ranks that train, and what is measured on them."""
