"""A small S3 server for the checks: objects are files in one folder, and conditional writes are atomic.

It has the requests that the trainer sends, and checks no signatures, so it listens on loopback only. The embedded
server of `finetune run` is larger than everything else that the bundle contains.
"""

import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

_CHUNK = 1 << 20
_MOST_KEYS = 1000
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class _Objects:
    """Objects of all buckets: one file for the content, named by the hash of the key, so that no key leaves the
    folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self.entries: dict[tuple[str, str], tuple[Path, int, str, float]] = {}
        self.uploads: dict[str, dict[int, tuple[Path, str]]] = {}

    def new_file(self) -> Path:
        return self.folder / uuid.uuid4().hex

    def put(self, address: tuple[str, str], path: Path, etag: str, condition: tuple[str, str]) -> int:
        """Return the HTTP status. `condition`: the headers If-None-Match and If-Match."""
        absent, match = condition
        with self.lock:
            present = self.entries.get(address)
            if match and present is None:
                return 404
            if (absent and present is not None) or (match and present is not None and present[2] != match.strip('"')):
                return 412
            self.entries[address] = (path, path.stat().st_size, etag, os.stat(path).st_mtime)
        return 200

    def delete(self, address: tuple[str, str]) -> None:
        with self.lock:
            entry = self.entries.pop(address, None)
        if entry is not None:
            entry[0].unlink(missing_ok=True)

    def under(self, bucket: str, prefix: str) -> list[tuple[str, tuple[Path, int, str, float]]]:
        with self.lock:
            found = [(key, entry) for (name, key), entry in self.entries.items() if name == bucket]
        return sorted(entry for entry in found if entry[0].startswith(prefix))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: _Objects

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Do not log requests."""

    # The methods of HTTP

    def do_GET(self) -> None:
        bucket, key, query = self._address()
        if not key:
            self._list(bucket, query)
            return
        self._send_object((bucket, key), with_body=True)

    def do_HEAD(self) -> None:
        bucket, key, _ = self._address()
        if not key:
            self._answer(200)
            return
        self._send_object((bucket, key), with_body=False)

    def do_PUT(self) -> None:
        bucket, key, query = self._address()
        path, etag = self._receive()
        if "uploadId" in query:
            self.objects.uploads[query["uploadId"]][int(query["partNumber"])] = (path, etag)
            self._answer(200, {"ETag": f'"{etag}"'})
            return
        self._store((bucket, key), path, etag)

    def do_POST(self) -> None:
        bucket, key, query = self._address()
        path, _ = self._receive()
        content = path.read_bytes()
        path.unlink()
        if "delete" in query:
            names = [node.text or "" for node in ElementTree.fromstring(content).iter() if node.tag.endswith("Key")]
            for name in names:
                self.objects.delete((bucket, name))
            self._xml("<DeleteResult/>")
        elif "uploads" in query:
            upload = uuid.uuid4().hex
            self.objects.uploads[upload] = {}
            self._xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
        else:
            self._complete((bucket, key), query["uploadId"])

    def do_DELETE(self) -> None:
        bucket, key, query = self._address()
        if "uploadId" in query:
            self.objects.uploads.pop(query["uploadId"], None)
        else:
            self.objects.delete((bucket, key))
        self._answer(204)

    # Parts of them

    def _address(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = parts.path.lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        return bucket, unquote(key), query

    def _receive(self) -> tuple[Path, str]:
        """Write the body to a new file; return its path and its MD5."""
        path, digest = self.objects.new_file(), hashlib.md5(usedforsecurity=False)
        left = int(self.headers.get("Content-Length") or 0)
        with path.open("wb") as file:
            while left > 0:
                chunk = self.rfile.read(min(left, _CHUNK))
                if not chunk:
                    raise ConnectionError("the request ended early")
                file.write(chunk)
                digest.update(chunk)
                left -= len(chunk)
        return path, digest.hexdigest()

    def _store(self, address: tuple[str, str], path: Path, etag: str) -> None:
        condition = (self.headers.get("If-None-Match", ""), self.headers.get("If-Match", ""))
        status = self.objects.put(address, path, etag, condition)
        if status == 200:
            self._answer(200, {"ETag": f'"{etag}"'})
            return
        path.unlink()
        self._error(status, "NoSuchKey" if status == 404 else "PreconditionFailed")

    def _complete(self, address: tuple[str, str], upload: str) -> None:
        path = self.objects.new_file()
        with path.open("wb") as whole:
            for _, (part, _) in sorted(self.objects.uploads.pop(upload).items()):
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole, _CHUNK)
                part.unlink()
        etag = uuid.uuid4().hex + "-1"
        self.objects.put(address, path, etag, ("", ""))
        self._xml(f'<CompleteMultipartUploadResult><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>')

    def _send_object(self, address: tuple[str, str], *, with_body: bool) -> None:
        entry = self.objects.entries.get(address)
        if entry is None:
            self._error(404, "NoSuchKey")
            return
        path, size, etag, modified = entry
        first, end, status = 0, size, 200
        headers = {"ETag": f'"{etag}"', "Last-Modified": formatdate(modified, usegmt=True), "Accept-Ranges": "bytes"}
        if found := _RANGE.fullmatch(self.headers.get("Range", "")):
            first, end, status = int(found[1]), min(size, int(found[2] or size - 1) + 1), 206
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        self._head(status, headers, end - first)
        if with_body:
            with path.open("rb") as file:
                file.seek(first)
                while first < end and (chunk := file.read(min(_CHUNK, end - first))):
                    self.wfile.write(chunk)
                    first += len(chunk)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        after = query.get("continuation-token", query.get("start-after", ""))
        found = [entry for entry in self.objects.under(bucket, query.get("prefix", "")) if entry[0] > after]
        most = int(query.get("max-keys", _MOST_KEYS))
        page, is_more = found[:most], len(found) > most
        items = "".join(
            f"<Contents><Key>{quote(key)}</Key><LastModified>{_iso(modified)}</LastModified>"
            f"<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size></Contents>"
            for key, (_, size, etag, modified) in page
        )
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if is_more and page else ""
        self._xml(
            f"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{str(is_more).lower()}</IsTruncated>"
            f"{token}{items}</ListBucketResult>"
        )

    def _xml(self, text: str, status: int = 200) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
        self._head(status, {"Content-Type": "application/xml"}, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status: int, code: str) -> None:
        self._xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._head(status, headers or {}, 0)

    def _head(self, status: int, headers: dict[str, str], size: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(size))
        self.end_headers()


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Serve an empty store on a free loopback port, and yield its endpoint."""
    folder.mkdir(parents=True)
    handler = type("Handler", (_Handler,), {"objects": _Objects(folder)})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
