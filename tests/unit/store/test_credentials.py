"""Credentials: mounted files win, the environment is next, else boto3's own chain is asked."""

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


def write(folder: Path, key: str, token: str = "") -> None:
    """As a kubelet swaps the files of a volume: all at once, by a link."""
    files = folder / f"..{key}"
    files.mkdir()
    for name, value in zip(AWS_NAMES, (key, f"secret of {key}", token), strict=True):
        if value:
            (files / name).write_text(value)
    link = folder / "..new"
    link.symlink_to(files.name)
    link.rename(folder / "..data")


def test_the_files_of_a_kubelet_are_read_again_when_they_were_swapped(folder: Path) -> None:
    write(folder, "first", "token")
    _, credentials = rotating_session()
    before = credentials.get_frozen_credentials()
    assert (before.access_key, before.secret_key, before.token) == ("first", "secret of first", "token")
    write(folder, "second")
    after = credentials.get_frozen_credentials()
    assert (after.access_key, after.secret_key, after.token) == ("second", "secret of second", None)
    assert credentials.generation == 1
    assert before.access_key == "first", "what a request is signed with stays consistent"


def test_files_that_vanish_for_a_moment_leave_the_credentials_in_force(folder: Path) -> None:
    for name in AWS_NAMES:
        (folder / name).write_text(name)
    _, credentials = rotating_session()
    for name in AWS_NAMES:
        (folder / name).unlink()
    (folder / AWS_NAMES[0]).write_text("new")
    (folder / AWS_NAMES[1]).write_text("new secret")
    assert credentials.get_frozen_credentials().access_key == "new"


def test_a_refusal_looks_up_what_the_environment_and_shared_files_say_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in AWS_NAMES:
        monkeypatch.delenv(name)
    shared = folder / "shared"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    shared.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = secret\n")
    session, credentials = rotating_session()
    assert session.get_credentials().get_frozen_credentials().access_key == "old"
    assert not credentials.renew(0), "there are no others"
    shared.write_text("[default]\naws_access_key_id = newer\naws_secret_access_key = secret\n")
    assert credentials.renew(0)
    assert session.get_credentials().get_frozen_credentials().access_key == "newer"
    assert credentials.renew(0), "another thread that used the old ones may try again too"
    assert not credentials.renew(credentials.generation)


def sts(code: str) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "told"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    return ClientError(answer, "AssumeRoleWithWebIdentity")


def refreshing(error: Exception) -> RefreshableCredentials:
    """Of a workload identity: due to be refreshed, which fails."""

    def refresh() -> dict[str, str]:
        raise error

    return RefreshableCredentials("old", "secret", "token", datetime.now(UTC) - timedelta(1), refresh, "identity")


class Chain:
    """What is found, look by look; the last one again and again. Exceptions are raised."""

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
def test_new_keys_are_used_though_the_old_ones_cannot_be_refreshed(error: Exception) -> None:
    refused = rotating(refreshing(error), Credentials("new", "secret"))
    assert refused.renew(0)
    assert refused.get_frozen_credentials().access_key == "new"
    states = iter([0, 1, 1])
    changed = rotating(refreshing(error), Credentials("new", "secret"), state=lambda: next(states))
    assert changed.get_frozen_credentials().access_key == "new"
    assert changed.generation == 1


@pytest.mark.parametrize("error", REFRESH_ERRORS, ids=repr)
def test_a_refresh_that_fails_asks_for_others_and_then_counts_as_no_credentials(error: Exception) -> None:
    with_others = rotating(refreshing(error), Credentials("new", "secret"))
    assert with_others.get_frozen_credentials().access_key == "new"
    alone = rotating(refreshing(error))
    with pytest.raises(CredentialRetrievalError, match="Error when retrieving credentials"):
        alone.get_frozen_credentials()
    assert not alone.renew(0)


def test_a_refresh_that_no_server_answers_may_succeed_later() -> None:
    with pytest.raises(ConnectTimeoutError):
        rotating(refreshing(ConnectTimeoutError(endpoint_url="https://sts"))).get_frozen_credentials()


@pytest.mark.parametrize("found", [None, ProfileNotFound(profile="gone"), refreshing(sts("AccessDenied"))])
def test_a_look_that_finds_nothing_usable_leaves_the_credentials_in_force(found: object) -> None:
    credentials = rotating(Credentials("old", "secret"), found)
    assert not credentials.renew(0)
    assert credentials.get_frozen_credentials().access_key == "old"


def test_nothing_was_there_and_others_come() -> None:
    assert rotating(None, Credentials("new", "secret")).renew(0)


def test_descriptions_of_services_are_parsed_once_for_all_sessions() -> None:
    loaders = [rotating_session()[0].get_component("data_loader") for _ in range(2)]
    assert loaders[0] is loaders[1]
    assert loaders[0].load_service_model("s3", "service-2") is loaders[1].load_service_model("s3", "service-2")


def test_descriptions_are_parsed_without_looking_for_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server does it before anybody has asked for storage; a profile that is not there is no error of it."""
    monkeypatch.setattr(botocore.session.Session, "get_credentials", lambda _: pytest.fail("looked for credentials"))
    parse_descriptions()
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    parse_descriptions()
