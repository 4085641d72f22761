"""Whether the Hugging Face hub is reachable: checked first, since its client retries for half a minute."""

import os
import socket
from urllib.parse import urlsplit


def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether a connection to the hub opens within `timeout` seconds; behind a proxy it is assumed to."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    try:
        socket.create_connection((endpoint.hostname or "", port), timeout).close()
    except OSError:
        return False
    return True
