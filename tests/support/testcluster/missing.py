"""What a machine lacks for the test cluster, with instructions."""


class MissingError(Exception):
    """This machine cannot run the cluster, or the requested part of it. The message states the reason."""
