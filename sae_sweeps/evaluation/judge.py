"""A judge model behind any OpenAI-compatible server."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from sae_sweeps.config.evaluations import AutointerpConfig
from sae_sweeps.errors import ConfigError, NoNetwork
from sae_sweeps.files import one_line

RETRIES = 2
"""Further attempts after an answer that says to try again."""
PASSING = (408, 409, 429, 500, 502, 503, 504)
"""HTTP statuses that say so."""
TIMEOUT_S = 60.0

Messages = list[dict[str, str]]


class Judge:
    """Asks one model; counts what is sent and received, in tokens where the server tells."""

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
        self.client = InferenceClient(base_url=cfg.judge, api_key=key, timeout=TIMEOUT_S)
        self._lock = threading.Lock()

    def ask(self, messages: Messages, max_tokens: int) -> str:
        """The model's answer. Raises NoNetwork where the server cannot be reached or refuses."""
        for attempt in range(RETRIES + 1):
            try:
                answer = self.client.chat_completion(messages, model=self.cfg.model, max_tokens=max_tokens)
            except Exception as error:  # httpx and huggingface_hub each have their own
                status = getattr(getattr(error, "response", None), "status_code", None)
                if status not in PASSING or attempt == RETRIES:
                    raise NoNetwork(
                        f"eval.autointerp.judge={self.cfg.judge}: {self._what(status, error)}; check the address, "
                        f"eval.autointerp.model={self.cfg.model} and the key in {self.cfg.api_key_env}."
                    ) from error
                time.sleep(self.wait_s * 2**attempt)
                continue
            self._count(answer)
            return (answer.choices[0].message.content or "").strip()
        raise AssertionError

    def _what(self, status: int | None, error: Exception) -> str:
        return (
            f"the server cannot be reached ({one_line(error)[:200]})" if status is None else f"the server said {status}"
        )

    def _count(self, answer: Any) -> None:
        usage = getattr(answer, "usage", None)
        if usage is not None:
            with self._lock:
                self.sent += usage.prompt_tokens or 0
                self.received += usage.completion_tokens or 0
