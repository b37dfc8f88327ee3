"""What a machine lacks for the test cluster, as a sentence that says what to do."""


class MissingError(Exception):
    """This machine cannot run the cluster, or not the part that was asked for. The message is the whole reason."""
