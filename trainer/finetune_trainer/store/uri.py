"""`s3://bucket/key` addresses and their patterns. Pure."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import BadConfigError

_SCHEME = "s3://"
_WILDCARDS = "*?["


@dataclass(frozen=True)
class S3Address:
    """Bucket and key of an object; `key` is empty for the bucket itself."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"


def parse(uri: str) -> S3Address:
    """Parse `s3://bucket[/key]`. Raises BadConfigError for any other text."""
    bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
    if not uri.startswith(_SCHEME) or not bucket:
        raise BadConfigError(f"{uri!r} must be an object-storage address", advice="write s3://bucket/key")
    return S3Address(bucket, key)


def join(uri: str, *parts: str) -> str:
    """Append `parts` with one slash before each; slashes at their ends are removed."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def is_pattern(uri: str) -> bool:
    """Whether `uri` contains one of `*`, `?` and `[`."""
    return any(character in uri for character in _WILDCARDS)


def literal_prefix(pattern: str) -> str:
    """Return the part of `pattern` before its first wildcard."""
    cuts = [pattern.index(character) for character in _WILDCARDS if character in pattern]
    return pattern[: min(cuts, default=len(pattern))]


def matches(pattern: str, uri: str) -> bool:
    """Whether `uri` matches `pattern`; `*`, `?` and `[...]` match within a name, never across a slash."""
    wanted, found = pattern.split("/"), uri.split("/")
    return len(wanted) == len(found) and all(fnmatchcase(name, part) for part, name in zip(wanted, found, strict=True))
