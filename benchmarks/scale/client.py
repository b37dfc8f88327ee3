"""A simple client of an API server, without models and retries, and with a limit of concurrent requests."""

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
    """An async context manager that authenticates with a client certificate."""

    def __init__(self, kubeconfig: Path, at_once: int) -> None:
        content = json.loads(kubeconfig.read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        self._server: str = cluster["server"]
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._tls.load_cert_chain(user["client-certificate"], user["client-key"])
        self._limit = asyncio.Semaphore(at_once)

    async def __aenter__(self) -> Self:
        # Connections are not limited here, because watches keep theirs open.
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**20)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def text(self, path: str) -> str:
        """GET a text response."""
        async with self._session.get(self._server + path) as answer:
            answer.raise_for_status()
            return await answer.text()

    async def send(self, method: str, path: str, body: Manifest | None = None) -> Manifest:
        """Send a request. Raises RuntimeError with the response of the server if it fails."""
        data = None if body is None else json.dumps(body)
        async with (
            self._limit,
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
        """Create a namespaced object."""
        return await self.send("POST", collection(manifest), manifest)

    async def update_status(self, manifest: Manifest, status: Manifest) -> Manifest:
        """Replace the status of an object, as returned by create()."""
        path = f"{collection(manifest)}/{manifest['metadata']['name']}/status"
        return await self.send("PUT", path, {**manifest, "status": status})

    async def watch(self, path: str) -> AsyncIterator[tuple[str, Manifest]]:
        """Yield type and object of every event, starting with the existing objects.

        Reconnects when the watch ends, or when the server ends it with an error, such as 410 for a version that it no
        longer has.
        """
        endless = aiohttp.ClientTimeout(total=None, sock_read=None)
        url = f"{self._server}{path}?watch=true&timeoutSeconds=3600"
        while True:
            async with self._session.get(url, timeout=endless) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        print(f"# the watch of {path} ended: {event['object'].get('message')}", flush=True)
                        break
                    yield event["type"], event["object"]


def collection(manifest: Manifest) -> str:
    """Return the path of the collection of an object."""
    version = manifest["apiVersion"]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    return f"{root}/namespaces/{manifest['metadata']['namespace']}/{_PLURALS[manifest['kind']]}"


def has_condition(manifest: Manifest, kind: str) -> bool:
    """Whether the object has a condition of this type with status True."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return any(entry["type"] == kind and entry["status"] == "True" for entry in conditions)
