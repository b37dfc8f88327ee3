"""A reverse proxy in front of the real S3 server: counts requests, and handles conditional writes like other
servers."""

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import Self

import aiohttp
import boto3
import yarl
from aiohttp import web
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from finetune_api.trainer_config import StorageSettings
from finetune_cli.local.embedded_store import EmbeddedStore
from killable_store import KillableStore
from reverse_proxy import ReverseProxy

_OWN = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "expect"})
"""Hop-by-hop headers. Not `Host`: it is part of the signature."""
_NOT_IMPLEMENTED = """<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>NotImplemented</Code><Message>A header implies functionality that is not implemented</Message></Error>"""


class Conditions(Enum):
    """How puts with `If-None-Match` and `If-Match` are handled."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    """The object is always written."""
    REFUSED = "refused"
    """501 NotImplemented."""
    REFUSED_AS_BAD = "refused as bad"
    """400 with the same code."""
    ONLY_ABSENT = "only absent"
    """`If-None-Match` is honoured, and `If-Match` is ignored."""


@dataclass(frozen=True)
class Request:
    """A request as sent by the client."""

    method: str
    path: str
    is_conditional: bool
    at: float


@dataclass
class StoreProxy(ReverseProxy):
    """A context manager between clients and a server."""

    server: EmbeddedStore | KillableStore
    conditions: Conditions = Conditions.HONOURED
    deletes_many: bool = True
    """Whether DeleteObjects is supported."""
    copies: bool = True
    """Whether CopyObject and UploadPartCopy are supported."""
    path: str = ""
    """Path prefix of the buckets, such as `/storage/v1/s3`; requests without it get 404."""
    requests: list[Request] = field(default_factory=list)
    """All requests so far, in order."""

    def __enter__(self) -> Self:
        access = self.server.access
        # Not the default session, which would keep the environment of the first test.
        self._plain = boto3.session.Session().client(
            "s3",
            endpoint_url=access.endpoint,
            region_name="us-east-1",
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            config=Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}),
        )
        return super().__enter__()

    def settings(self) -> StorageSettings:
        """Settings for the trainer, with the server's own credentials."""
        return StorageSettings(endpoint=f"http://127.0.0.1:{self.port}{self.path}", path_style=True)

    def count(self, method: str, part: str = "", *, since: float = 0.0) -> int:
        """Number of requests whose path contains `part`; `since` is a time of `time.monotonic`."""
        return sum(one.method == method and part in one.path for one in list(self.requests) if one.at >= since)

    def client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("User-Agent", "Content-Type"))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        is_conditional = request.method == "PUT" and not {"If-None-Match", "If-Match"}.isdisjoint(request.headers)
        self.requests.append(Request(request.method, request.path, is_conditional, time.monotonic()))
        body = await request.read()
        if is_conditional and not self._honours(request):
            return await self._unconditional(request.path, body)
        if not self.copies and request.method == "PUT" and "x-amz-copy-source" in request.headers:
            return web.Response(status=501, text=_NOT_IMPLEMENTED, content_type="application/xml")
        if not self.deletes_many and request.method == "POST" and "delete" in request.query:
            return web.Response(status=501, text=_NOT_IMPLEMENTED, content_type="application/xml")
        if self.path:
            return await self._below_the_path(request, body)
        return await self._passed_on(request, body)

    def _honours(self, request: web.Request) -> bool:
        if self.conditions is Conditions.ONLY_ABSENT:
            return "If-None-Match" in request.headers
        return self.conditions is Conditions.HONOURED

    async def _below_the_path(self, request: web.Request, body: bytes) -> web.Response:
        """Forward the request without the prefix; the path is signed, so the request is signed again."""
        if not request.raw_path.startswith(self.path + "/"):
            return web.Response(status=404)
        access = self.server.access
        url = access.endpoint + request.raw_path.removeprefix(self.path)
        signed = AWSRequest(request.method, url, data=body, headers={"X-Amz-Content-SHA256": sha256(body).hexdigest()})
        S3SigV4Auth(Credentials(access.access_key, access.secret_key), "s3", "us-east-1").add_auth(signed)
        address = yarl.URL(url, encoded=True)
        async with self.session.request(request.method, address, headers=dict(signed.headers), data=body) as answer:
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
            return web.Response(status=answer.status, body=await answer.read(), headers=passed)

    async def _unconditional(self, path: str, body: bytes) -> web.Response:
        """Send the request without the header; the header is signed, so this is a new request."""
        if self.conditions not in {Conditions.IGNORED, Conditions.ONLY_ABSENT}:
            status = 400 if self.conditions is Conditions.REFUSED_AS_BAD else 501
            return web.Response(status=status, text=_NOT_IMPLEMENTED, content_type="application/xml")
        bucket, _, key = path.removeprefix("/").partition("/")
        answer = await asyncio.to_thread(self._plain.put_object, Bucket=bucket, Key=key, Body=body)
        return web.Response(headers={"ETag": answer["ETag"]})

    async def _passed_on(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN}
        address = yarl.URL(f"{self.server.access.endpoint}{request.raw_path}", encoded=True)
        data = body or (b"" if request.method == "PUT" else None)
        async with self.session.request(request.method, address, headers=headers, data=data) as answer:
            passed = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
            content = await answer.read()
            if request.method == "HEAD":
                passed["Content-Length"] = answer.headers.get("Content-Length", "0")
            return web.Response(status=answer.status, body=content, headers=passed)
