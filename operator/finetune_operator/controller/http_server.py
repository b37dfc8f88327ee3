"""`/metrics`, `/healthz` and `/readyz` of the operator."""

import errno
import socket
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest


async def serve(
    host: str,
    port: int,
    registry: CollectorRegistry,
    problems: Callable[[], tuple[str, ...]],
    awaited: Callable[[], tuple[str, ...]],
) -> web.AppRunner:
    """Start the server; the caller stops it with `cleanup()`. No host: all addresses, IPv4 and IPv6.

    `problems` returns why the process must be restarted, `awaited` why it is not ready.

    Raises OSError if the port is in use.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def healthz(_: web.Request) -> web.Response:
        found = problems()
        return web.Response(text="\n".join(found) or "ok", status=500 if found else 200)

    async def readyz(_: web.Request) -> web.Response:
        found = awaited()
        return web.Response(text="\n".join(found) or "ok", status=503 if found else 200)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port) if host else web.SockSite(runner, _on_all_addresses(port))
    await site.start()
    return runner


def _on_all_addresses(port: int) -> socket.socket:
    """Return a socket for IPv4 and IPv6, or only for IPv4 if the kernel has no IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise
    return socket.create_server(("0.0.0.0", port))
