"""The promoted model of an output: its record, its files, and how both are replaced.

`records` is pure. `storage` is used by the evaluate stage and the command line; it imports no training libraries.
"""
