"""The effect of changing a spec field. It is declared on the fields; hashes and checks are derived from it."""

from enum import StrEnum


class Scope(StrEnum):
    """The effect of changing a field. A block class declares the scope of its fields, and a field can override it."""

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
