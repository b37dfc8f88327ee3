"""Errors of the operator.

OperatorError
└── ClusterConflictError   a child's name is taken by an object that is not ours
"""


class OperatorError(Exception):
    """Something that the operator cannot go on with."""


class ClusterConflictError(OperatorError):
    """A child's name is taken by an object that another owner has made."""
