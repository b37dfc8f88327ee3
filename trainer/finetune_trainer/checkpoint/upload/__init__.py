"""The process beside each rank that stores its snapshots, and both ends of the wire to it. No torch."""
