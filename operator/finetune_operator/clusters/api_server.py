"""Client of an API server. Objects are plain dictionaries, and errors are raised as ApiError.

The official client handles kubeconfig, tokens, TLS and connections. Its typed models are not used, because they reject
objects that the API server accepts (an integer in the limits of a container).
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

_load: Any = kubernetes_config  # these parts of the client have no type annotations
_JSON = "application/json"
_TIMEOUT = aiohttp.ClientTimeout(total=30.0)
_CONNECT_SECONDS = 5.0
_CONNECTIONS = 32
_MAX_EVENT_BYTES = 8 * 2**20
"""Maximum size of a watch event. An object of 1.5 MiB, the limit of etcd, may need six times that with JSON escapes."""
_CLOCK_TOLERANCE = timedelta(seconds=5)
"""Tolerated difference between the clocks. Responses contain the time in whole seconds."""
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
        """`called` is called with method and status of every request; status 0: no response."""
        self._client = client
        self._called = called
        self.context = context
        """Context of the kubeconfig; empty: the service account of the pod."""
        self.namespace = namespace
        """Namespace of the context, or of the pod."""
        self._server_time: tuple[datetime, float] | None = None
        """The server time in the last response, and the monotonic time when it was received."""

    @classmethod
    async def connect(
        cls,
        kubeconfig: Path | None = None,
        called: Callable[[str, int], None] = lambda *_: None,
        *,
        context: str | None = None,
    ) -> "ApiServer":
        """Connect with a kubeconfig. Absent: that of KUBECONFIG or the home folder, or the service account of the pod.

        Raises ConfigException if no configuration is found.
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
        # Otherwise the environment and ~/.netrc are read for every request, on two threads.
        configuration.proxy = configuration.proxy or proxy_of(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(ApiClient(configuration), called, **found)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def now(self) -> datetime:
        """Return the time, by the clock of the server if the local clock differs: times in objects are from the
        server."""
        ours = utc_now()
        if self._server_time is None:
            return ours
        server_time, at = self._server_time
        theirs = server_time + timedelta(seconds=time.monotonic() - at)
        return ours if abs(ours - theirs) < _CLOCK_TOLERANCE else theirs

    async def request(
        self, method: str, path: str, body: Manifest | None = None, *, accept: str = _JSON, **query: str | int
    ) -> Manifest:
        """Send a request and return the response.

        Raises ApiError for an error status (StaleError for a version conflict) and ApiUnreachableError without
        response.
        """
        content = await self._send(method, path, body, query, accept)
        try:
            result: Manifest = json.loads(content)
        except ValueError:
            raise ApiUnreachableError(
                f"{method} {path}: the response must be JSON, not {content[:100]!r}; check the address of the API "
                "server"
            ) from None
        return result

    async def text(self, path: str, **query: str | int) -> str:
        """GET a text, such as a log."""
        return (await self._send("GET", path, None, query, "*/*")).decode(errors="replace")

    async def watch(self, path: str, *, silence_seconds: float, **query: str | int) -> AsyncGenerator[Manifest, None]:
        """Yield the events of a watch, including bookmarks, until the server closes it.

        Events that are too large or nested too deeply are skipped; callers list objects periodically. Raises ApiError
        for an error status, also within the stream, and ApiUnreachableError without response, if the connection fails,
        or if nothing was received for `silence_seconds`.
        """
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)
        query |= {"watch": "true", "allowWatchBookmarks": "true"}
        with self._translated_errors("GET", path):
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
        with self._translated_errors(method, path):
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
        """Send a request and return the response before its body is read."""
        if query:
            path = f"{path}?{urlencode(query)}"
        headers = {"Accept": accept, **self._client.default_headers}
        if method == "PATCH":
            headers["Content-Type"] = "application/strategic-merge-patch+json"
        # The body is plain JSON. The serialization of the client would copy all of its values.
        await self._client.update_params_for_auth(headers, None, ["BearerToken"], path, method, body)
        url = self._client.configuration.host + path
        return await self._client.call_api(method, url, headers, body, _request_timeout=timeout)

    async def _check(self, method: str, answer: Any) -> None:
        """Record the server time of a response. Raises ApiError for an error status."""
        if date := answer.headers.get("Date"):
            self._server_time = (parsedate_to_datetime(date), time.monotonic())
        refused = not HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
        content = await answer.read() if refused else b""
        self._called(method, answer.status)
        if refused:
            raise refusal_of(answer.status, content, answer.headers)

    @contextlib.contextmanager
    def _translated_errors(self, method: str, path: str) -> Iterator[None]:
        """Translate exceptions of a request and count them."""
        try:
            yield
        except ApiException as error:
            self._called(method, error.status or 0)
            raise refusal_of(error.status or 0, error.body, error.headers) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._called(method, 0)
            raise ApiUnreachableError(f"{method} {path}: {error or type(error).__name__}") from error


async def lines_of(chunks: AsyncIterable[bytes], path: str, limit: int = _MAX_EVENT_BYTES) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, and skip those that are longer than the limit.

    The iteration of aiohttp raises ValueError for a line that exceeds its buffer.
    """
    partial, is_too_long = bytearray(), False
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = bytes(partial + end)
            partial.clear()
            if is_too_long or len(line) > limit:
                LOG.warning("GET %s: an event of more than %d bytes is skipped", path, limit)
            elif line:
                yield line
            is_too_long = False
        partial += rest
        if len(partial) > limit:
            is_too_long = True
            partial.clear()
    if partial and not is_too_long:
        yield bytes(partial)  # incomplete, or not a stream of events: the caller reports it


def _event_of(line: bytes, path: str) -> Manifest | None:
    """Parse a line of a watch; None if it is nested too deeply. Raises ApiError for an event of type ERROR."""
    try:
        event: Manifest = json.loads(line)
        kind, content = event["type"], event["object"]
    except RecursionError:
        LOG.warning("GET %s: an event of %d bytes is nested too deeply and is skipped", path, len(line))
        return None
    except (ValueError, KeyError, TypeError):
        raise ApiUnreachableError(
            f"GET {path}: a watch event must be a JSON object with type and object, not {line[:100]!r}"
        ) from None
    if kind == "ERROR":
        raise _error_of(int(content.get("code") or 0), content)
    return event


def proxy_of(server: str) -> str | None:
    """Return the proxy for a server from the environment; None: no proxy."""
    address = urlsplit(server)
    return None if proxy_bypass(address.hostname or "") else getproxies().get(address.scheme)


def refusal_of(status: int, content: bytes | str | None, headers: Any) -> ApiError:
    """Return an error with the message of the Status object of a response, else with the text of the response."""
    text = content.decode(errors="replace") if isinstance(content, bytes) else content or ""
    try:
        content_object = json.loads(text)
    except ValueError:
        content_object = None
    if not isinstance(content_object, dict):
        content_object = {"message": text[:1000]}
    wait = (headers or {}).get("Retry-After")
    return _error_of(status, content_object, retry_after=float(wait) if wait and wait.isdigit() else None)


def _error_of(status: int, content: Mapping[str, Any], *, retry_after: float | None = None) -> ApiError:
    """Return the error for a Status object."""
    reason = str(content.get("reason", ""))
    kind = StaleError if status == HTTPStatus.CONFLICT and reason == "Conflict" else ApiError
    return kind(status, reason, str(content.get("message", "")), retry_after=retry_after)
