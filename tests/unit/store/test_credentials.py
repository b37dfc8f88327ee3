"""Credentials: mounted files take precedence over the environment and boto3's own chain."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import ClientError, ConnectTimeoutError, CredentialRetrievalError, ProfileNotFound

from finetune_api.constants import Env
from finetune_trainer.store.credentials import (
    AWS_NAMES,
    RotatingCredentials,
    credential,
    from_files,
    parse_descriptions,
    rotating_session,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(Env.CREDENTIALS, str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, f"environment-{name}")
    return tmp_path


def test_mounted_keys_are_session_arguments(folder: Path) -> None:
    (folder / "AWS_ACCESS_KEY_ID").write_text("key\n")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("secret\n")
    (folder / "AWS_SESSION_TOKEN").write_text("token\n")
    assert from_files() == {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_session_token": "token"}


def test_keys_are_not_mixed_with_a_token_of_another_source(folder: Path) -> None:
    (folder / "AWS_ACCESS_KEY_ID").write_text("key")
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("secret")
    assert from_files() == {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


def test_without_mounted_keys_the_chain_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "HF_TOKEN").write_text("hub")
    assert from_files() == {}
    assert credential("HF_TOKEN") == "hub"
    monkeypatch.delenv(Env.CREDENTIALS)
    assert from_files() == {}
    assert credential("HF_TOKEN") == "environment-HF_TOKEN"
    monkeypatch.delenv("HF_TOKEN")
    assert credential("HF_TOKEN") is None


def write(folder: Path, key: str, token: str = "") -> None:
    """Replace the files like a kubelet: all at once, through a link."""
    files = folder / f"..{key}"
    files.mkdir()
    for name, value in zip(AWS_NAMES, (key, f"secret of {key}", token), strict=True):
        if value:
            (files / name).write_text(value)
    link = folder / "..new"
    link.symlink_to(files.name)
    link.rename(folder / "..data")


def test_files_are_read_again_after_a_kubelet_replaced_them(folder: Path) -> None:
    write(folder, "first", "token")
    _, credentials = rotating_session()
    before = credentials.get_frozen_credentials()
    assert (before.access_key, before.secret_key, before.token) == ("first", "secret of first", "token")
    write(folder, "second")
    after = credentials.get_frozen_credentials()
    assert (after.access_key, after.secret_key, after.token) == ("second", "secret of second", None)
    assert credentials.generation == 1
    assert before.access_key == "first", "the credentials of a request stay consistent"


def test_files_that_are_missing_for_a_moment_do_not_change_the_credentials(folder: Path) -> None:
    for name in AWS_NAMES:
        (folder / name).write_text(name)
    _, credentials = rotating_session()
    for name in AWS_NAMES:
        (folder / name).unlink()
    (folder / AWS_NAMES[0]).write_text("new")
    (folder / AWS_NAMES[1]).write_text("new secret")
    assert credentials.get_frozen_credentials().access_key == "new"


def test_after_a_rejection_environment_and_shared_files_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in AWS_NAMES:
        monkeypatch.delenv(name)
    shared = folder / "shared"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    shared.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = secret\n")
    session, credentials = rotating_session()
    assert session.get_credentials().get_frozen_credentials().access_key == "old"
    assert not credentials.renew(0), "there are no other credentials"
    shared.write_text("[default]\naws_access_key_id = newer\naws_secret_access_key = secret\n")
    assert credentials.renew(0)
    assert session.get_credentials().get_frozen_credentials().access_key == "newer"
    assert credentials.renew(0), "another thread that used the old ones may also retry"
    assert not credentials.renew(credentials.generation)


def sts(code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "rejected"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(answer, "AssumeRoleWithWebIdentity")


def refreshing(error: Exception) -> RefreshableCredentials:
    """Credentials of a workload identity that are due for a refresh, which fails."""

    def refresh() -> dict[str, str]:
        raise error

    return RefreshableCredentials("old", "secret", "token", datetime.now(UTC) - timedelta(1), refresh, "identity")


class Chain:
    """Results of consecutive lookups; the last one is repeated. Exceptions are raised."""

    def __init__(self, *found: object) -> None:
        self.found = list(found)

    def __call__(self) -> Any:
        found = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if isinstance(found, Exception):
            raise found
        return found


def rotating(*found: object, state: Callable[[], object] = lambda: 0) -> RotatingCredentials:
    return RotatingCredentials(Chain(*found), state)


REFRESH_ERRORS = [
    sts("ExpiredTokenException"),
    sts("InvalidIdentityToken"),
    CredentialRetrievalError(provider="process", error_msg="status 1"),
    FileNotFoundError("/var/run/secrets/token"),
    RuntimeError("the refreshed credentials are still expired"),
]


@pytest.mark.parametrize("error", [*REFRESH_ERRORS, ConnectTimeoutError(endpoint_url="https://sts")], ids=repr)
def test_new_keys_are_used_even_if_the_old_ones_cannot_be_refreshed(error: Exception) -> None:
    refused = rotating(refreshing(error), Credentials("new", "secret"))
    assert refused.renew(0)
    assert refused.get_frozen_credentials().access_key == "new"
    states = iter([0, 1, 1])
    changed = rotating(refreshing(error), Credentials("new", "secret"), state=lambda: next(states))
    assert changed.get_frozen_credentials().access_key == "new"
    assert changed.generation == 1


@pytest.mark.parametrize("error", REFRESH_ERRORS, ids=repr)
def test_a_failed_refresh_triggers_a_lookup_and_then_counts_as_no_credentials(error: Exception) -> None:
    with_others = rotating(refreshing(error), Credentials("new", "secret"))
    assert with_others.get_frozen_credentials().access_key == "new"
    alone = rotating(refreshing(error))
    with pytest.raises(CredentialRetrievalError, match="Error when retrieving credentials"):
        alone.get_frozen_credentials()
    assert not alone.renew(0)


def test_a_refresh_without_a_response_may_succeed_later() -> None:
    with pytest.raises(ConnectTimeoutError):
        rotating(refreshing(ConnectTimeoutError(endpoint_url="https://sts"))).get_frozen_credentials()


@pytest.mark.parametrize("found", [None, ProfileNotFound(profile="gone"), refreshing(sts("AccessDenied"))])
def test_a_lookup_without_usable_result_does_not_change_the_credentials(found: object) -> None:
    credentials = rotating(Credentials("old", "secret"), found)
    assert not credentials.renew(0)
    assert credentials.get_frozen_credentials().access_key == "old"


def test_credentials_can_appear_later() -> None:
    assert rotating(None, Credentials("new", "secret")).renew(0)


def test_service_descriptions_are_parsed_once_for_all_sessions() -> None:
    loaders = [rotating_session()[0].get_component("data_loader") for _ in range(2)]
    assert loaders[0] is loaders[1]
    assert loaders[0].load_service_model("s3", "service-2") is loaders[1].load_service_model("s3", "service-2")


def test_descriptions_are_parsed_without_a_lookup_of_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server parses them before storage is used; a missing profile is not an error there."""
    monkeypatch.setattr(botocore.session.Session, "get_credentials", lambda _: pytest.fail("looked for credentials"))
    parse_descriptions()
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    parse_descriptions()
