"""Credentials: mounted files win, the environment is next, else boto3's own chain is asked."""

from pathlib import Path

import pytest

from finetune_api.constants import Env
from finetune_trainer.store.credentials import credential, from_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(Env.CREDENTIALS, str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, f"environment-{name}")
    return tmp_path


def test_mounted_keys_are_a_sessions_arguments(folder: Path) -> None:
    (folder / "AWS_ACCESS_KEY_ID").write_text("key\n")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("secret\n")
    (folder / "AWS_SESSION_TOKEN").write_text("token\n")
    assert from_files() == {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_session_token": "token"}


def test_keys_of_one_place_are_not_mixed_with_a_token_of_another(folder: Path) -> None:
    (folder / "AWS_ACCESS_KEY_ID").write_text("key")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("secret")
    assert from_files() == {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


def test_without_mounted_keys_the_chain_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "HF_TOKEN").write_text("hub")
    assert from_files() == {}
    assert credential("HF_TOKEN") == "hub"
    monkeypatch.delenv(Env.CREDENTIALS)
    assert from_files() == {}
    assert credential("HF_TOKEN") == "environment-HF_TOKEN"
    monkeypatch.delenv("HF_TOKEN")
    assert credential("HF_TOKEN") is None
