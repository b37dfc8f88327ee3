"""The commands: arguments in, words and an exit status out. What they do is done elsewhere."""
