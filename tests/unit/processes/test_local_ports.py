import socket

import pytest

from finetune_operator.clusters import local_ports


def test_ports_of_a_pod_are_outside_of_the_ephemeral_range() -> None:
    ports = local_ports.free_ports(3)
    assert len(set(ports)) == 3
    with socket.socket() as another:
        another.bind(("127.0.0.1", 0))  # an ephemeral port
        first = another.getsockname()[1]
    assert max(ports) < 32_768 <= first


def test_a_port_in_use_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    (held, free) = local_ports.free_ports(2)
    monkeypatch.setattr(local_ports, "_PORTS", range(min(held, free), max(held, free) + 1, abs(free - held)))
    with socket.create_server(("127.0.0.1", held)):
        assert local_ports.free_ports(1) == [free]
        with pytest.raises(OSError, match="has 1 free ports"):
            local_ports.free_ports(2)
