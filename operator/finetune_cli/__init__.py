"""The command line: everything that a user types, sees and gets back.

Runs the operator's own reconcile on the local cluster; imports no torch, so that every command answers at once.
"""
