"""One connection to an API server: plain objects in and out, every refusal an ApiError.

The official client does what is its own business: kubeconfig, tokens, TLS, connections. Its typed models are left
alone, they refuse objects that the API server accepts (an integer among a container's limits).
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException

from finetune_api.clock import utc_now

from ..errors import ApiError, ApiUnreachableError, StaleError
from ..manifests import Manifest

LOG = logging.getLogger(__name__)

_load: Any = kubernetes_config  # these parts of the client carry no types
_JSON = "application/json"
_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
_CONNECT_SECONDS = 5.0
_CONNECTIONS = 32
_MAX_EVENT_BYTES = 8 * 2**20
"""Of one line of a watch: an object of etcd's 1.5 MiB may grow to six times that where JSON escapes its characters."""
_CLOCK_TOLERANCE = timedelta(seconds=5)
"""Clocks of a cluster may differ by so much; an answer tells its time in whole seconds."""
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ApiServer:
    """A client of one API server."""

    def __init__(
        self,
        client: Any,
        called: Callable[[str, int], None] = lambda *_: None,
        *,
        context: str = "",
        namespace: str = "default",
    ) -> None:
        """`called` hears of the method and the answer's status of every call; status 0: no answer."""
        self._client = client
        self._called = called
        self.context = context
        """The kubeconfig's; empty: the pod's own account."""
        self.namespace = namespace
        """The context's, or the pod's own."""
        self._told: tuple[datetime, float] | None = None
        """The server's time in its last answer, and when that came."""

    @classmethod
    async def connect(
        cls,
        kubeconfig: Path | None = None,
        called: Callable[[str, int], None] = lambda *_: None,
        *,
        context: str | None = None,
    ) -> "ApiServer":
        """Through a kubeconfig file; absent: KUBECONFIG's or the home folder's, or in a pod its own account.

        Raises ConfigException where nothing leads to a cluster.
        """
        configuration = Configuration()
        names_none = kubeconfig is None and context is None
        if names_none and "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
            _load.load_incluster_config(client_configuration=configuration)
            found = {"namespace": _OWN_NAMESPACE.read_text().strip()} if _OWN_NAMESPACE.exists() else {}
        else:
            path = None if kubeconfig is None else str(kubeconfig)
            loaded = await _load.load_kube_config(config_file=path, context=context, client_configuration=configuration)
            chosen = loaded.current_context
            found = {"context": chosen["name"], "namespace": chosen["context"].get("namespace") or "default"}
        configuration.connection_pool_maxsize = _CONNECTIONS
        # Else the environment and ~/.netrc are read again for every call, on two threads.
        configuration.proxy = configuration.proxy or proxy_of(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(ApiClient(configuration), called, **found)

    async def close(self) -> None:
        """End all connections."""
        await self._client.close()

    def now(self) -> datetime:
        """The time, by the server's clock where ours goes wrong: all times in objects are the server's."""
        ours = utc_now()
        if self._told is None:
            return ours
        told, at = self._told
        theirs = told + timedelta(seconds=time.monotonic() - at)
        return ours if abs(ours - theirs) < _CLOCK_TOLERANCE else theirs

    async def request(
        self, method: str, path: str, body: Manifest | None = None, *, accept: str = _JSON, **query: str | int
    ) -> Manifest:
        """One call; what the server answers.

        Raises ApiError for a refusal (StaleError for a conflict of versions) and ApiUnreachableError for no answer.
        """
        content = await self._send(method, path, body, query, accept)
        try:
            result: Manifest = json.loads(content)
        except ValueError:
            raise ApiUnreachableError(f"{method} {path}: somebody else answers: {content[:100]!r}") from None
        return result

    async def text(self, path: str, **query: str | int) -> str:
        """GET of something that is no object, such as a log."""
        return (await self._send("GET", path, None, query, "*/*")).decode(errors="replace")

    async def watch(self, path: str, *, silence_seconds: float, **query: str | int) -> AsyncGenerator[Manifest, None]:
        """The events of a watch, bookmarks too, until the server ends it. An event that is too large, or nested too
        deeply, to be read is left out: whoever watches looks from time to time anyway.

        Raises ApiError for a refusal, also one within the stream, and ApiUnreachableError for no answer, a connection
        that breaks, or one on which nothing has come for so long.
        """
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)
        query |= {"watch": "true", "allowWatchBookmarks": "true"}
        with self._telling("GET", path):
            answer = await self._open("GET", path, None, query, _JSON, timeout)
            try:
                await self._check("GET", answer)
                async for line in lines_of(answer.response.content.iter_any(), path):
                    event = _event_of(line, path)
                    if event is not None:
                        yield event
            finally:
                answer.response.close()

    async def _send(
        self, method: str, path: str, body: Manifest | None, query: Mapping[str, str | int], accept: str
    ) -> bytes:
        with self._telling(method, path):
            answer = await self._open(method, path, body, query, accept, _TIMEOUT)
            await self._check(method, answer)
            content: bytes = await answer.read()
            return content

    async def _open(
        self,
        method: str,
        path: str,
        body: Manifest | None,
        query: Mapping[str, str | int],
        accept: str,
        timeout: aiohttp.ClientTimeout,
    ) -> Any:
        """Make a call; its answer, of which nothing is read yet."""
        if query:
            path = f"{path}?{urlencode(query)}"
        headers = {"Accept": accept, **self._client.default_headers}
        if method == "PATCH":
            headers["Content-Type"] = "application/strategic-merge-patch+json"
        # What is sent is JSON already: the client's own preparation would copy all of it, value by value.
        await self._client.update_params_for_auth(headers, None, ["BearerToken"], path, method, body)
        url = self._client.configuration.host + path
        return await self._client.call_api(method, url, headers, body, _request_timeout=timeout)

    async def _check(self, method: str, answer: Any) -> None:
        """Note what the head of an answer tells; raises ApiError where it is a refusal."""
        if date := answer.headers.get("Date"):
            self._told = (parsedate_to_datetime(date), time.monotonic())
        refused = not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
        content = await answer.read() if refused else b""
        self._called(method, answer.status)
        if refused:
            raise refusal_of(answer.status, content, answer.headers)

    @contextlib.contextmanager
    def _telling(self, method: str, path: str) -> Iterator[None]:
        """Whatever goes wrong in a call, in our own words, and counted."""
        try:
            yield
        except ApiException as error:
            self._called(method, error.status or 0)
            raise refusal_of(error.status or 0, error.body, error.headers) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._called(method, 0)
            raise ApiUnreachableError(f"{method} {path}: {error or type(error).__name__}") from error


async def lines_of(chunks: AsyncIterable[bytes], path: str, limit: int = _MAX_EVENT_BYTES) -> AsyncIterator[bytes]:
    """The lines of a stream, without those that are longer than the limit.

    aiohttp's own iteration raises ValueError for a line that its buffer cannot hold.
    """
    begun, is_too_long = bytearray(), False
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = bytes(begun + end)
            begun.clear()
            if is_too_long or len(line) > limit:
                LOG.warning("GET %s: an event of more than %d bytes is left out", path, limit)
            elif line:
                yield line
            is_too_long = False
        begun += rest
        if len(begun) > limit:
            is_too_long = True
            begun.clear()
    if begun and not is_too_long:
        yield bytes(begun)  # broken off, or no stream of events at all: whoever reads it finds out


def _event_of(line: bytes, path: str) -> Manifest | None:
    """One line of a watch; None for one that cannot be read here. Raises ApiError for the server's last word on why it
    ends."""
    try:
        event: Manifest = json.loads(line)
        kind, told = event["type"], event["object"]
    except RecursionError:
        LOG.warning("GET %s: an event of %d bytes is nested too deeply and is left out", path, len(line))
        return None
    except (ValueError, KeyError, TypeError):
        raise ApiUnreachableError(f"GET {path}: a watch has brought {line[:100]!r}") from None
    if kind == "ERROR":
        raise _error_of(int(told.get("code") or 0), told)
    return event


def proxy_of(server: str) -> str | None:
    """The environment's way to it; None: straight."""
    address = urlsplit(server)
    return None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)


def refusal_of(status: int, content: bytes | str | None, headers: Any) -> ApiError:
    """The server's own words where it sends a Status object; else what it, or a box in between, sends."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else content or ""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        told = {"message": text[:1000]}
    wait = (headers or {}).get("Retry-After")
    return _error_of(status, told, retry_after=float(wait) if wait and wait.isdigit() else None)


def _error_of(status: int, told: Mapping[str, Any], *, retry_after: float | None = None) -> ApiError:
    """`told` is a Status object."""
    reason = str(told.get("reason", ""))
    kind = StaleError if status == HTTPStatus.CONFLICT and reason == "Conflict" else ApiError
    return kind(status, reason, str(told.get("message", "")), retry_after=retry_after)
