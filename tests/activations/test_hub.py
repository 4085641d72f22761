"""Whether the hub answers is found out by asking, not by waiting for its client's retries."""

import socket

from sae_sweeps.storage.hub import hub_is_reachable

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def test_hub_is_reachable(monkeypatch):
    for name in (*PROXIES, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_is_reachable()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub_is_reachable()
        monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub_is_reachable()  # nobody listens there any more
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert hub_is_reachable()
