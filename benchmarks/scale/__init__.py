"""Parts of operator_scale.py: a plain client, what processes use, and the two ways to the same children."""
