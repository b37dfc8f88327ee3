"""The uploader process of each rank, its client in the rank, and the memory they share. No torch."""
