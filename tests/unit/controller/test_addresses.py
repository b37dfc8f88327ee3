"""IPv4 and IPv6: servers listen on both, and URLs are valid."""

import asyncio
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from finetune_operator.clusters.local_ports import free_ports
from finetune_operator.clusters.pod_progress import host_of
from finetune_operator.controller.http_server import serve
from finetune_trainer.supervisor.progress_server import serve_progress

LOOPBACKS = ("127.0.0.1", "[::1]") if socket.has_dualstack_ipv6() else ("127.0.0.1",)


def answer(host: str, port: int, path: str) -> int:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as response:
        return int(response.status)


def test_the_progress_of_a_pod_is_served_on_both_families(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    serve_progress(tmp_path, stage="train", host="", port=port)
    assert [answer(host, port, "/progress") for host in LOOPBACKS] == [200] * len(LOOPBACKS)


@pytest.mark.parametrize("host", [host.strip("[]") for host in LOOPBACKS])
def test_a_single_address_can_be_configured(tmp_path: Path, host: str) -> None:
    (port,) = free_ports(1)
    serve_progress(tmp_path, stage="train", host=host, port=port)
    assert answer(host_of(host), port, "/healthz") == 200


def test_probes_and_metrics_of_the_operator_are_served_on_both_families() -> None:
    async def scenario(port: int) -> list[int]:
        runner = await serve("", port, CollectorRegistry(), tuple, tuple)
        try:
            return [await asyncio.to_thread(answer, host, port, "/readyz") for host in LOOPBACKS]
        finally:
            await runner.cleanup()

    (port,) = free_ports(1)
    assert asyncio.run(scenario(port)) == [200] * len(LOOPBACKS)


def test_a_port_in_use_is_an_error_on_either_server(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    serve_progress(tmp_path, stage="train", host="", port=port)
    with pytest.raises(OSError, match="progress cannot be served on any address"):
        serve_progress(tmp_path, stage="train", host="", port=port)
    with pytest.raises(OSError, match="in use"):
        asyncio.run(serve("", port, CollectorRegistry(), tuple, tuple))


@pytest.mark.parametrize(("address", "host"), [("10.0.0.7", "10.0.0.7"), ("fd00::7", "[fd00::7]")])
def test_an_ipv6_address_is_in_brackets(address: str, host: str) -> None:
    assert host_of(address) == host
