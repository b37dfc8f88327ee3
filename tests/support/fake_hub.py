"""A local HTTP server with the parts of the Hugging Face Hub's protocol that resolving and downloading need."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_right"


@dataclass
class Repository:
    """Revisions and commits of one repository. Files are in memory."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], *revisions: str) -> str:
        """Add a commit, to which the given revisions (such as `main`) point from now on; returns its id."""
        commit = hashlib.sha1(json.dumps(sorted((n, len(c), _sha(c)) for n, c in files.items())).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.revisions |= dict.fromkeys(("main", *revisions), commit)
        return commit


@dataclass
class FakeHub:
    """Content of the server, and the requests that it received."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    """`tiny/llama`, `datasets/tiny/reviews`: the path of the repository."""
    seen: Counter[str] = field(default_factory=Counter)
    """`GET /path` -> number of requests."""
    changed_on_the_way: set[str] = field(default_factory=set)
    """Names of files that are sent with different content."""
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def repository(self, path: str) -> Repository:
        """Return the repository; create it if it does not exist."""
        return self.repositories.setdefault(path, Repository())

    def fetched(self, name: str) -> int:
        """Number of times the content of a file was sent."""
        return sum(count for line, count in self.seen.items() if line.startswith("GET ") and line.endswith(f"/{name}"))

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        """Serve on a free port of the loopback interface."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen[f"{self.command} {path}"] += 1
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b'{"error": "Invalid username or password."}', with_body)
            return
        for name, repository in self.hub.repositories.items():
            api = f"/api/{name if name.startswith('datasets/') else 'models/' + name}/revision/"
            if path.startswith(api):
                self._send_info(name, repository, path.removeprefix(api), with_body=with_body)
                return
            if path.startswith(f"/{name}/resolve/"):
                commit, _, file = path.removeprefix(f"/{name}/resolve/").partition("/")
                self._send_file(repository, commit, file, with_body=with_body)
                return
        self._send(404, b'{"error": "Repository not found"}', with_body, **{"X-Error-Code": "RepoNotFound"})

    def _send_info(self, name: str, repository: Repository, revision: str, *, with_body: bool) -> None:
        commit = revision if revision in repository.commits else repository.revisions.get(revision)
        if commit is None:
            self._send(404, b'{"error": "Invalid rev id"}', with_body, **{"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [_sibling(file, content) for file, content in sorted(repository.commits[commit].items())]
        info = {"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(info).encode(), with_body)

    def _send_file(self, repository: Repository, commit: str, file: str, *, with_body: bool) -> None:
        content = repository.commits.get(commit, {}).get(file)
        if content is None:
            self._send(404, b'{"error": "Entry not found"}', with_body, **{"X-Error-Code": "EntryNotFound"})
            return
        if file in self.hub.changed_on_the_way:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(200, content, with_body, **{"X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, with_body: bool, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _sibling(name: str, content: bytes) -> dict[str, object]:
    """Large files are in LFS, which reports a SHA-256; for others the hub reports git's id."""
    found: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": _blob_id(content)}
    if name.endswith(".safetensors"):
        found["lfs"] = {"sha256": _sha(content), "size": len(content), "pointerSize": 134}
    return found


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def files_in(folder: Path) -> dict[str, bytes]:
    """Name -> content of the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
