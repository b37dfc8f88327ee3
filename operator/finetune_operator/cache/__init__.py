"""Cached state of FineTuneJobs, their Jobs and pods, from watch events."""
