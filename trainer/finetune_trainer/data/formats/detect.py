"""Detects the format of a file from its columns."""

from collections.abc import Collection

from finetune_api.v1alpha1 import TASK_SUPPORT, Columns, DataFormat, Task

from ...errors import BadDataError
from ..problems import listed
from .base import FORMATS, column_names


def detect_format(first: Collection[str], columns: Columns, task: Task | None, uri: str) -> DataFormat:
    """The only format that `first`, the columns of the first record, allow. Raises BadDataError for none or several."""
    possible = []
    for data_format in DataFormat:
        fields = FORMATS[data_format].columns
        has_all = all(set(column_names(fields, columns, field)) & set(first) for field in fields)
        fits_task = task is None or data_format in TASK_SUPPORT[task].formats
        if has_all and fits_task:
            possible.append(data_format)
    hidden = {other for data_format in possible for other in FORMATS[data_format].preferred_to}
    possible = [data_format for data_format in possible if data_format not in hidden]
    here = listed(first)
    if len(possible) == 1:
        return possible[0]
    if possible:
        raise BadDataError(
            f"{uri}: the columns ({here}) match more than one format: {', '.join(possible)}",
            advice=f"set spec.data.format to one of {', '.join(possible)}",
        )
    needs = "; ".join(f"{name}: {', '.join(FORMATS[name].columns)}" for name in DataFormat)
    suited = "" if task is None else f" for the task {task}"
    raise BadDataError(
        f"{uri}: the columns ({here}) match no format{suited}",
        advice=f"set spec.data.format, and name the columns in spec.data.columns ({needs})",
    )
