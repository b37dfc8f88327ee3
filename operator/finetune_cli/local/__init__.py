"""Run jobs on this machine: engine, storage, state and the demo."""
