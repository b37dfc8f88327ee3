"""Digests of local files and folders, to compare with those that are recorded or that a server reports.

Reads the files and has no other effects."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"([0-9a-f]{32})-([0-9]+)")
_MIB = 1 << 20
_PART_SIZES = (5 * _MIB, 8 * _MIB, 15 * _MIB, 16 * _MIB, 32 * _MIB, 64 * _MIB, 100 * _MIB, 128 * _MIB, 512 * _MIB)
"""Part sizes in MiB of common clients: AWS CLI and boto3 8, this project 16, Go clients 5, rclone 5, minio 16,
s3cmd 15."""
_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(files: Iterable[tuple[str, str]]) -> str:
    """Return the SHA-256 over the sorted names and content digests of a folder's files; identifies a model."""
    whole = hashlib.sha256()
    for name, sha256 in sorted(files):
        whole.update(f"{name}\0{sha256}\n".encode())
    return whole.hexdigest()


def git_blob_id(path: Path) -> str:
    """Return git's id of the file's content: SHA-1 over `blob <size>`, a zero byte and the content."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def has_etag(path: Path, etag: str) -> bool:
    """Whether the ETag proves that the object and the file have the same content.

    An ETag is the MD5 of the content, or after a multipart upload the MD5 of the parts' MD5s and the number of parts.
    Returns False for any other ETag (encryption with a KMS key, unknown part sizes), even if the contents are equal.
    """
    stated = etag.strip('"').lower()
    if _MD5.fullmatch(stated):
        with path.open("rb") as file:
            return hashlib.file_digest(file, _md5).hexdigest() == stated
    found = _MULTIPART.fullmatch(stated)
    if found is None:
        return False
    parts, size = int(found[2]), path.stat().st_size
    fitting = (part_size for part_size in _PART_SIZES if max(1, -(-size // part_size)) == parts)
    return any(_multipart(path, part_size) == found[1] for part_size in fitting)


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)


def _multipart(path: Path, part_size: int) -> str:
    whole = _md5()
    with path.open("rb") as file:
        while part := file.read(part_size):
            whole.update(hashlib.md5(part, usedforsecurity=False).digest())
    return whole.hexdigest()
