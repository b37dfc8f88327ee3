"""Jobs on this machine: the run itself, its storage, its state and the demo."""
