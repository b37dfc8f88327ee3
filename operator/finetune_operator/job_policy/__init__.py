"""The job policy: what an administrator lets jobs use. Pure."""
