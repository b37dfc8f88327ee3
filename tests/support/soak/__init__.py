"""A kill campaign: real trainings, real storage, and everything that writes checkpoints dies again and again."""
