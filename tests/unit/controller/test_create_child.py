"""Children that exist: which are kept, which are replaced, and what this costs in requests."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from factories import make_job
from finetune_api.constants import CONFIG_KEY, Stage
from finetune_api.trainer_config import StorageSettings
from finetune_api.validation import parse_job
from finetune_operator.clusters.kubernetes import KubernetesCluster
from finetune_operator.errors import ApiError, ClusterConflictError, StaleError
from finetune_operator.manifests import Manifest
from finetune_operator.policy.world import stage_config
from finetune_operator.render import render_stage
from finetune_operator.settings import OperatorSettings

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
JOBS = "/apis/batch/v1/namespaces/default/jobs"
NAME = "example-r1-prepare-a1"


@dataclass
class ObjectServer:
    """Objects by path, with the answers of an API server."""

    objects: dict[str, Manifest] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    versions: int = 0

    async def request(self, method: str, path: str, body: Manifest | None = None, **_: Any) -> Manifest:
        self.calls.append(f"{method} {'jobs' if path.startswith(JOBS) else 'configmaps'}")
        match method:
            case "POST":
                assert body is not None
                return self.create(f"{path}/{body['metadata']['name']}", body)
            case "GET":
                if path not in self.objects:
                    raise ApiError(404, "NotFound", path)
                return self.objects[path]
            case "DELETE":
                wanted = (body or {})["preconditions"]
                if wanted != {name: self.objects[path]["metadata"][name] for name in wanted}:
                    raise StaleError(409, "Conflict", "the precondition does not hold")
                return self.objects.pop(path)
        raise AssertionError(method)

    def create(self, path: str, body: Manifest) -> Manifest:
        if path in self.objects:
            raise ApiError(409, "AlreadyExists", path)
        self.versions += 1
        own = {"uid": f"uid-{self.versions}", "resourceVersion": str(self.versions)}
        self.objects[path] = {**body, "metadata": {**body["metadata"], **own}}
        return self.objects[path]

    def config(self) -> str:
        """The configuration that pods get."""
        return str(self.objects[f"{CONFIG_MAPS}/{NAME}"]["data"][CONFIG_KEY])


def children(owner: str = "u", **spec: Any) -> tuple[Manifest, ...]:
    """ConfigMap and Job of the first attempt."""
    manifest = make_job("example", **spec)
    manifest["metadata"]["uid"] = owner
    return render_stage(stage_config(parse_job(manifest), 1, Stage.PREPARE, 1, StorageSettings()), OperatorSettings())


def created(server: ObjectServer, *manifests: Manifest) -> list[str]:
    """The requests that create these children."""
    server.calls.clear()

    async def create() -> None:
        cluster = KubernetesCluster(server)  # type: ignore[arg-type]
        for manifest in manifests:
            await cluster.create_child(manifest)

    asyncio.run(create())
    return server.calls


CORRECTED = {"training": {"microBatchSize": 2}}


def test_children_that_do_not_exist_cost_one_request_each() -> None:
    assert created(ObjectServer(), *children()) == ["POST configmaps", "POST jobs"]


def test_a_config_map_whose_job_was_refused_gets_the_corrected_configuration() -> None:
    server = ObjectServer()
    refused, _ = children()
    created(server, refused)
    before = server.objects[f"{CONFIG_MAPS}/{NAME}"]["metadata"]["uid"]
    config, job = children(**CORRECTED)
    calls = created(server, config, job)
    assert server.config() == config["data"][CONFIG_KEY]
    assert server.objects[f"{CONFIG_MAPS}/{NAME}"]["metadata"]["uid"] != before, "an immutable object is replaced"
    exchange = ["GET configmaps", "GET jobs", "DELETE configmaps", "POST configmaps"]
    assert calls == ["POST configmaps", *exchange, "POST jobs"]


def test_the_same_configuration_is_kept() -> None:
    server = ObjectServer()
    created(server, *children())
    config, job = children()
    assert created(server, config) == ["POST configmaps", "GET configmaps"]
    assert created(server, job) == ["POST jobs", "GET jobs"]


def test_the_config_map_of_a_job_that_exists_is_kept() -> None:
    """Its pods may have read it. A reconcile of a cached view finds such a Job."""
    server = ObjectServer()
    created(server, *children())
    before = server.config()
    created(server, *children(**CORRECTED))
    assert server.config() == before


def test_a_config_map_of_another_owner_is_a_conflict() -> None:
    server = ObjectServer()
    created(server, children(owner="another")[0])
    before = server.config()
    with pytest.raises(ClusterConflictError, match="exists and belongs to another owner"):
        created(server, *children(**CORRECTED))
    assert server.config() == before


def test_a_config_map_that_changes_meanwhile_is_not_deleted() -> None:
    class Racing(ObjectServer):
        async def request(self, method: str, path: str, body: Manifest | None = None, **options: Any) -> Manifest:
            if method == "DELETE":
                self.objects[path]["metadata"]["resourceVersion"] = "changed"
            return await super().request(method, path, body, **options)

    server = Racing()
    refused, _ = children()
    created(server, refused)
    with pytest.raises(StaleError):
        created(server, *children(**CORRECTED))
    assert server.config() == refused["data"][CONFIG_KEY]
