"""The checkpoint format and the messages about it. Pure: no input or output."""
