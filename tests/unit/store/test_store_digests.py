"""What an ETag and git's id prove about a file."""

import hashlib
from pathlib import Path

import pytest

from finetune_trainer.store.digests import git_blob_id, has_etag

MIB = 1 << 20


def md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def multipart(content: bytes, part_size: int) -> str:
    """Computed like S3."""
    parts = [content[at : at + part_size] for at in range(0, len(content), part_size)]
    return f'"{md5(b"".join(map(md5, parts))).hex()}-{len(parts)}"'


@pytest.mark.parametrize("size", [0, 5, 3 * MIB])
def test_the_etag_of_a_single_put_is_the_md5(tmp_path: Path, size: int) -> None:
    path, content = tmp_path / "file", b"x" * size
    path.write_bytes(content)
    assert has_etag(path, f'"{md5(content).hex()}"')
    assert not has_etag(path, f'"{md5(content + b"y").hex()}"')


@pytest.mark.parametrize("part_mib", [5, 8, 16])
def test_the_etag_of_a_multipart_upload_is_recognized_by_the_number_of_parts(tmp_path: Path, part_mib: int) -> None:
    path, content = tmp_path / "file", bytes(range(256)) * (17 * 4096)
    path.write_bytes(content)
    assert has_etag(path, multipart(content, part_mib * MIB))
    assert not has_etag(path, multipart(content[:-1] + b"x", part_mib * MIB))


@pytest.mark.parametrize("etag", ["", '"abc"', '"0123456789abcdef0123456789abcdef-0"', "W/weak"])
def test_other_kinds_of_etags_prove_nothing(tmp_path: Path, etag: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert not has_etag(tmp_path / "file", etag)


def test_the_git_id_is_that_of_git_hash_object(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"
