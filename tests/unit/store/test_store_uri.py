"""Addresses and patterns."""

from pathlib import Path

import pytest

from finetune_trainer.errors import BadConfigError
from finetune_trainer.store.transfer import inside
from finetune_trainer.store.uri import S3Address, is_pattern, join, literal_prefix, matches, parse


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [("s3://b/k", "b", "k"), ("s3://b/a/b c/", "b", "a/b c/"), ("s3://b", "b", ""), ("s3://b/", "b", "")],
)
def test_an_address_has_a_bucket_and_a_key(uri: str, bucket: str, key: str) -> None:
    assert parse(uri) == S3Address(bucket, key)


@pytest.mark.parametrize("uri", ["", "b/k", "s3:/b/k", "s3://", "s3:///k", "file:///k", "http://b/k"])
def test_other_text_is_rejected(uri: str) -> None:
    with pytest.raises(BadConfigError, match="must be an object-storage address"):
        parse(uri)


def test_an_address_is_printed_as_it_was_written() -> None:
    assert str(parse("s3://b/a/c")) == "s3://b/a/c"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("s3://b", "k"), "s3://b/k"), (("s3://b/p/", "/a/", "c"), "s3://b/p/a/c"), (("s3://b/p/",), "s3://b/p")],
)
def test_joining_puts_one_slash_between(parts: tuple[str, ...], expected: str) -> None:
    assert join(*parts) == expected


@pytest.mark.parametrize(
    ("pattern", "uri", "expected"),
    [
        ("s3://b/*.csv", "s3://b/a.csv", True),
        ("s3://b/*.csv", "s3://b/deep/a.csv", False),
        ("s3://b/*/a.csv", "s3://b/deep/a.csv", True),
        ("s3://b/?.csv", "s3://b/ab.csv", False),
        ("s3://b/[ab].csv", "s3://b/b.csv", True),
        ("s3://b/[!ab].csv", "s3://b/b.csv", False),
        ("s3://b/A.csv", "s3://b/a.csv", False),
    ],
)
def test_wildcards_match_within_a_name(pattern: str, uri: str, expected: bool) -> None:
    assert matches(pattern, uri) is expected


def test_the_literal_prefix_ends_before_the_first_wildcard() -> None:
    assert literal_prefix("s3://b/p/a[12]-*") == "s3://b/p/a"
    assert literal_prefix("s3://b/p") == "s3://b/p"
    assert is_pattern("s3://b/?")
    assert not is_pattern("s3://b/p")


@pytest.mark.parametrize("relative", ["../evil", "a/../../evil", "/etc/passwd", "..", ".", "", "a//b", "a/./b", "a\0b"])
def test_a_key_cannot_point_outside_of_its_folder(relative: str) -> None:
    with pytest.raises(BadConfigError, match="must be a path within its folder"):
        inside(Path("/folder"), relative)
