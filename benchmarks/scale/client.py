"""A plain client of an API server: no models, no retries, so many calls at once. What a script would use."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

Manifest = dict[str, Any]

_PLURALS = {"ConfigMap": "configmaps", "Service": "services", "Job": "jobs", "FineTuneJob": "finetunejobs"}


class PlainClient:
    """An async context manager; the credentials are a certificate's."""

    def __init__(self, kubeconfig: Path, at_once: int) -> None:
        content = json.loads(kubeconfig.read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        self._server: str = cluster["server"]
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._tls.load_cert_chain(user["client-certificate"], user["client-key"])
        self._turn = asyncio.Semaphore(at_once)

    async def __aenter__(self) -> Self:
        # One connection more than calls: a watch keeps one.
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def text(self, path: str) -> str:
        """GET of something that is no object."""
        async with self._session.get(self._server + path) as answer:
            answer.raise_for_status()
            return await answer.text()

    async def send(self, method: str, path: str, body: Manifest | None = None) -> Manifest:
        """One call; an answer that is no success is an error with the server's words."""
        data = None if body is None else json.dumps(body)
        async with (
            self._turn,
            self._session.request(
                method, self._server + path, data=data, headers={"Content-Type": "application/json"}
            ) as answer,
        ):
            content = await answer.read()
            if not answer.ok:
                raise RuntimeError(f"{method} {path}: {answer.status} {content.decode()[:500]}")
            result: Manifest = json.loads(content)
            return result

    async def create(self, manifest: Manifest) -> Manifest:
        """A namespaced object."""
        return await self.send("POST", collection(manifest), manifest)

    async def update_status(self, manifest: Manifest, status: Manifest) -> Manifest:
        """Of an object as it was created."""
        path = f"{collection(manifest)}/{manifest['metadata']['name']}/status"
        return await self.send("PUT", path, {**manifest, "status": status})

    async def watch(self, path: str) -> AsyncIterator[tuple[str, Manifest]]:
        """Type and object of every event, from the objects that are there already on; again where it was cut."""
        endless = aiohttp.ClientTimeout(total=None, sock_read=None)
        url = f"{self._server}{path}?watch=true&timeoutSeconds=3600"
        while True:
            async with self._session.get(url, timeout=endless) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    event = json.loads(line)
                    yield event["type"], event["object"]


def collection(manifest: Manifest) -> str:
    """Path of the object's collection."""
    version = manifest["apiVersion"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    return f"{root}/namespaces/{manifest['metadata']['namespace']}/{_PLURALS[manifest['kind']]}"


def has_condition(manifest: Manifest, kind: str) -> bool:
    """Whether the object's status says so."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return any(entry["type"] == kind and entry["status"] == "True" for entry in conditions)
