"""What the client library of W&B needs of a server: it keeps the rows, summary and settings of runs.

The server of W&B has no free package. This one answers the requests of the real client and of `wandb sync` as the real
one does for a new run and for a run that is continued.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"
API_KEY = "k" * 40


@dataclass
class StoredRun:
    """A run as the server has it."""

    project: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)


@dataclass
class WandBServer:
    """The stored runs by their ids."""

    url: str = ""
    runs: dict[str, StoredRun] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)
    """Requests that are not about runs, such as telemetry."""

    def query(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL request."""
        if name == "UpsertBucket":
            run = self.runs.setdefault(given["name"], StoredRun(given["project"]))
            run.config |= {key: entry["value"] for key, entry in json.loads(given["config"] or "{}").items()}
            project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
            bucket = {"id": "QnVja2V0", "name": given["name"], "project": project, "config": "{}"}
            return {"upsertBucket": {"bucket": bucket, "inserted": not run.rows}}
        if name == "RunResumeStatus":
            found = self.runs.get(given["name"])
            return {"model": {"id": "p", "name": given["project"], "bucket": found and _status(given["name"], found)}}
        if name == "CreateRunFiles":
            files = [{"name": path, "uploadUrl": f"{self.url}/uploads/{path}"} for path in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        self.other.append(name)
        return {}

    def stream(self, run: StoredRun, sent: dict[str, Any]) -> None:
        """Store rows, which have the number of the first one, and the summary."""
        files = sent.get("files") or {}
        if (history := files.get("wandb-history.jsonl")) is not None:
            first, rows = history["offset"], [json.loads(line) for line in history["content"]]
            run.rows[first : first + len(rows)] = rows
        for line in files.get("wandb-summary.json", {}).get("content", ()):
            run.summary = json.loads(line)
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])


def _status(name: str, run: StoredRun) -> dict[str, Any]:
    return {
        "id": "QnVja2V0",
        "name": name,
        "historyLineCount": len(run.rows),
        "eventsLineCount": 0,
        "logLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
        "eventsTail": "[]",
        "summaryMetrics": json.dumps(run.summary),
        "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
        "wandbConfig": json.dumps({"t": 1}),  # the run was started
        "tags": [],
    }


@contextmanager
def running() -> Iterator[WandBServer]:
    """Run the server on a free port."""
    state = WandBServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = json.loads(self._body() or b"{}")
            parts = self.path.strip("/").split("/")
            if parts == ["graphql"]:
                self._answer({"data": state.query(sent["operationName"], sent["variables"])})
            elif parts[-1] == "file_stream":
                state.stream(state.runs[parts[-2]], sent)
                self._answer({"exitcode": None, "limits": {}})
            else:
                state.other.append(self.path)
                self._answer({})

        def do_PUT(self) -> None:
            self._body()
            self._answer({})

        def do_GET(self) -> None:
            state.other.append(self.path)
            self._answer({})

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Write nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
