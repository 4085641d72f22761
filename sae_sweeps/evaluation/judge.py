"""A judge model behind any OpenAI-compatible server."""

from __future__ import annotations

import os
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from sae_sweeps.config.evaluations import AutointerpConfig
from sae_sweeps.errors import ConfigError, NoNetwork
from sae_sweeps.storage.files import one_line

RETRIES = 2
"""Further attempts after a temporary error."""
PASSING = (408, 409, 429)
"""HTTP statuses of temporary errors, besides those from 500 on."""
TIMEOUT_S = 60.0

Messages = list[dict[str, str]]


class Judge:
    """Sends requests to one model; counts tokens sent and received where the server reports them."""

    def __init__(self, cfg: AutointerpConfig, wait_s: float = 1.0):
        if not cfg.judge:
            raise ConfigError(
                "eval.autointerp.judge is not set: give the address of an OpenAI-compatible server, such as "
                "http://localhost:8000/v1."
            )
        from huggingface_hub import InferenceClient

        self.cfg, self.wait_s = cfg, wait_s
        self.sent = self.received = 0
        key = os.environ.get(cfg.api_key_env) or "none"  # local servers want none, the client wants one
        not_through_proxy(cfg.judge)
        self.client = InferenceClient(base_url=cfg.judge, api_key=key, timeout=TIMEOUT_S)
        self._lock = threading.Lock()

    def complete(self, messages: Messages, max_tokens: int) -> str:
        """The model's answer. Raises NoNetwork where the server cannot be reached or refuses."""
        from huggingface_hub import InferenceTimeoutError

        for attempt in range(RETRIES + 1):
            try:
                answer = self.client.chat_completion(messages, model=self.cfg.model, max_tokens=max_tokens)
                text = answer.choices[0].message.content
            except Exception as error:  # httpx and huggingface_hub each have their own
                status = getattr(getattr(error, "response", None), "status_code", None)
                again = isinstance(error, InferenceTimeoutError) or status in PASSING or (status or 0) >= 500
                if not again or attempt == RETRIES:
                    raise NoNetwork(
                        f"eval.autointerp.judge={self.cfg.judge}: {self._what(status, error)}; check the address, "
                        f"eval.autointerp.model={self.cfg.model} and the key in {self.cfg.api_key_env}."
                    ) from error
                time.sleep(self.wait_s * 2**attempt)
                continue
            self._count(answer)
            return (text or "").strip()
        raise AssertionError

    def _what(self, status: int | None, error: Exception) -> str:
        if status is not None:
            return f"the server answered {status}"
        if isinstance(error, (IndexError, KeyError, TypeError, ValueError, AttributeError)):
            return f"the server's answer is not a chat completion ({one_line(error)[:200]})"
        return f"the server cannot be reached ({one_line(error)[:200]})"

    def _count(self, answer: Any) -> None:
        usage = getattr(answer, "usage", None)
        if usage is not None:
            with self._lock:
                self.sent += usage.prompt_tokens or 0
                self.received += usage.completion_tokens or 0


def not_through_proxy(address: str) -> None:
    """Exempts an address of this machine from the proxy that the environment names."""
    import huggingface_hub

    host = urlsplit(address).hostname or ""
    if host not in ("localhost", "::1") and not host.startswith("127."):
        return
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if exempt == "*" or host in (name.strip() for name in exempt.split(",")):
        return
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [exempt, host]))
    if hasattr(huggingface_hub, "close_session"):  # the hub's client reads the environment when it is made
        huggingface_hub.close_session()
