"""What a change of a spec field causes. Declared on the fields; everything that depends on it is derived."""

from enum import StrEnum


class Scope(StrEnum):
    """What a change of a field causes. A block class declares the scope of its fields, and a field can override it."""

    DATA = "Data"
    """A new run, which prepares the data again where the prepared rows depend on the field."""
    RUN = "Run"
    """A new run on the prepared data."""
    ATTEMPT = "Attempt"
    """The next attempt uses it. A running attempt continues without it."""
    EVALUATION = "Evaluation"
    """The model is evaluated, and exported, again within the same run, also after the run is complete."""
    NOW = "Now"
    """It takes effect at once."""
