"""The commands: they parse arguments, print results and set the exit status. The work is done in other modules."""
