"""Read jobs and logs in a cluster."""
