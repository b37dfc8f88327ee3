"""The proxy for an API server from the environment."""

import pytest

from finetune_operator.clusters.api_server import proxy_of


@pytest.mark.parametrize(
    ("server", "proxy"),
    [
        ("https://api.example:6443", "http://proxy.example:3128"),
        ("https://127.0.0.1:6443", None),
        ("https://master.inside.example", None),
        ("http://api.example:8080", None),
    ],
    ids=["elsewhere", "by address", "by domain", "not over TLS"],
)
def test_the_environment_configures_the_proxy(monkeypatch: pytest.MonkeyPatch, server: str, proxy: str | None) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1,.inside.example")
    assert proxy_of(server) == proxy
