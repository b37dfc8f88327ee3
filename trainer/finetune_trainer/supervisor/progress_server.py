"""Serves `/progress`, `/metrics` and `/healthz` of a trainer pod from the supervisor, outside the training process."""

import errno
import socket
import socketserver
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from finetune_api.progress import FOR_STATUS, Progress

from ..progress import PROGRESS_FILE


class FinalRead:
    """Whether the operator has read the progress after the ranks exited.

    The operator requests `/progress?for=status`. Other requests, for example from displays, do not count.
    """

    def __init__(self) -> None:
        self.is_final = False
        """The ranks have exited, so the progress does not change anymore."""
        self._is_done = threading.Event()

    def mark_done(self) -> None:
        """Record that the operator has read the final progress."""
        self._is_done.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the operator has read the final progress. Returns False after a timeout of `seconds`."""
        self.is_final = True
        return self._is_done.wait(seconds)


def serve_progress(folder: Path, *, stage: str, host: str, port: int) -> FinalRead:
    """Serve the progress file of a scratch folder in a daemon thread, until the process exits.

    Without a host, the server listens on all IPv4 and IPv6 addresses. It is listening when this returns. Raises OSError
    if the port is in use.
    """
    final_read = FinalRead()
    try:
        server = _server(host, port, partial(_Handler, folder, stage, final_read))
    except OSError as error:
        raise OSError(f"progress cannot be served on {host or 'any address'}, port {port}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return final_read


class _Handler(BaseHTTPRequestHandler):
    """Handles GET requests of three paths."""

    def __init__(self, folder: Path, stage: str, final_read: FinalRead, *request: Any) -> None:
        self._folder, self._stage, self._final_read = folder, stage, final_read
        super().__init__(*request)  # handles the request

    def do_GET(self) -> None:
        """Respond with the content of the path, or with 404 and the list of paths."""
        is_final = self._final_read.is_final  # read before the file, so that the content of the file is final too
        progress = read_progress(self._folder, self._stage)
        path, _, query = self.path.partition("?")
        if path == "/progress":
            self._answer("application/json", progress.model_dump_json(exclude_defaults=True))
            if is_final and query == FOR_STATUS:
                self._final_read.mark_done()
        elif path == "/metrics":
            self._answer("text/plain; version=0.0.4", metrics_text(progress))
        elif path == "/healthz":
            self._answer("text/plain", "ok\n")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "known paths: /progress, /metrics, /healthz")

    def _answer(self, content_type: str, text: str) -> None:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class names it so
        """Log nothing: there are several requests per second."""


def _server(host: str, port: int, handler: Callable[..., _Handler]) -> "_Server":
    if host or not socket.has_dualstack_ipv6():
        return _Server((host or "0.0.0.0", port), handler)
    try:
        return _DualStackServer(("::", port), handler)
    except OSError as error:  # the kernel supports IPv6, but no interface has an IPv6 address
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise
        return _Server(("0.0.0.0", port), handler)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: Callable[..., _Handler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind resolves its own host name, which can take seconds in a pod. The name is not used.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _DualStackServer(_Server):
    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def read_progress(folder: Path, stage: str) -> Progress:
    """Return the progress in the file, or that of a starting stage if there is no file yet."""
    try:
        return Progress.model_validate_json((folder / PROGRESS_FILE).read_bytes())
    except FileNotFoundError:
        return Progress(stage=stage, activity="starting")
    except ValueError:
        return Progress(stage=stage, activity="running; the progress file cannot be read")


_GAUGES: dict[str, str] = {
    "step": "Optimizer steps done.",
    "total_steps": "Total number of optimizer steps.",
    "epoch": "Passes over the training split.",
    "tokens": "Tokens without padding trained on by this attempt.",
    "loss": "Training loss.",
    "learning_rate": "Learning rate.",
    "tokens_per_second": "Tokens without padding per second, over all workers.",
    "step_seconds": "Recent mean time of an optimizer step.",
    "eta_seconds": "Estimated time to the last step.",
    "peak_memory_bytes": "Peak memory of rank 0.",
}
"""Field of Progress -> help text."""


def metrics_text(progress: Progress) -> str:
    """Return the progress in Prometheus' text format, without fields that are not known yet."""
    labels = f'stage="{progress.stage}",attempt="{progress.attempt}"'
    lines: list[str] = []

    def gauge(name: str, text: str, samples: list[tuple[str, float]]) -> None:
        if samples:
            lines.extend((f"# HELP finetune_{name} {text}", f"# TYPE finetune_{name} gauge"))
            lines.extend(f"finetune_{name}{{{labels}{extra}}} {value!r}" for extra, value in samples)

    for name, text in _GAUGES.items():
        value = getattr(progress, name)
        gauge(name, text, [] if value is None else [("", value)])
    saved = progress.last_checkpoint
    if saved is not None:
        moment = datetime.fromisoformat(saved.time).timestamp()
        gauge("last_checkpoint_step", "Step of the last committed checkpoint.", [("", saved.step)])
        gauge("last_checkpoint_timestamp_seconds", "Time when it was committed.", [("", moment)])
        gauge("last_checkpoint_save_seconds", "Time that storing it took.", [("", saved.save_seconds)])
    phases = [(f',phase="{name}"', seconds) for name, seconds in sorted(progress.phase_seconds.items())]
    gauge("phase_seconds", "Seconds spent in each phase of the attempt.", phases)
    figures = [(f',metric="{name}"', value) for name, value in sorted(progress.evaluation.items())]
    gauge("evaluation", "Last metrics of the validation split.", figures)
    return "\n".join(lines) + "\n"
