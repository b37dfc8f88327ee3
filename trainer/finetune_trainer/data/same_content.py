"""Files with the same content, whatever their addresses: copies, hard links, and other spellings of one address.

A file is compared as a whole. Files with the same records in another order, another format or another compression are
different files; `spec.data.cleaning` compares records.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from finetune_api.v1alpha1 import BadRecordAction, Source

from ..errors import BadConfigError
from .problems import BadRecords, listed
from .readers import file_type, read
from .sources import SourceFile, check_one_weight

_LISTED_FILES = 3


def read_once(
    sources: Sequence[Source], files: Sequence[SourceFile], field: str
) -> tuple[tuple[SourceFile, ...], tuple[str, ...]]:
    """The files without those that repeat the content of another one, and warnings about these.

    `files` are those of `sources`, and `field` is the path in the spec. Raises BadConfigError if the same content is in
    two sources of which one has a weight.
    """
    kept: dict[tuple[str, str], SourceFile] = {}
    copies = []
    for file in files:
        key = (file_type(file), file.sha256)
        first = kept.setdefault(key, file)
        if first is file or not _has_records(file):
            continue
        reason = f"{file.uri} has the content of {first.uri}"
        one, other = sorted((first.source, file.source))
        check_one_weight(sources, one, other, reason, field)
        kept[key] = replace(first, source=one)
        copies.append(reason)
    if not copies:
        return tuple(kept.values()), ()
    advice = "; to train more often on it, set a weight" if field == "spec.data.train" else ""
    return tuple(kept.values()), (f"{field}: {listed(copies, most=_LISTED_FILES)}, and is read once{advice}",)


def check_held_out(files: Mapping[str, Sequence[SourceFile]]) -> tuple[str, ...]:
    """Check that no file is in the training split and in another one. `files` has those of each split of the spec.

    Returns a warning about files that validation and test share. Raises BadConfigError for a file that is trained on.
    """
    trained = {file.sha256: file for file in files["train"]}
    for split in ("validation", "test"):
        for file in files.get(split, ()):
            other = trained.get(file.sha256)
            if other is not None and _has_records(file):
                content = "" if file.uri == other.uri else f" has the content of {other.uri}"
                raise BadConfigError(
                    f"spec.data.{split}.sources[{file.source}].uri must not name a file of "
                    f"spec.data.train[{other.source}].uri, because the model learns its records: {file.uri}{content}",
                    advice=f"name the file in one of them alone; to hold out a part of the training files, remove "
                    f"sources and write spec.data.{split}: {{fraction: 0.1}}",
                )
    validation = {file.sha256 for file in files.get("validation", ())}
    shared = [file.uri for file in files.get("test", ()) if file.sha256 in validation and _has_records(file)]
    if not shared:
        return ()
    kind = "file" if len(shared) == 1 else "files"
    return (
        f"validation and test have the same {kind}, {listed(shared, most=_LISTED_FILES)}: a checkpoint that is chosen "
        "by the validation split does better on this test split than on new records",
    )


def _has_records(file: SourceFile) -> bool:
    """Whether there is any: files without records, such as those with a header alone, are often equal."""
    return next(read(file, BadRecords(BadRecordAction.SKIP)), None) is not None
