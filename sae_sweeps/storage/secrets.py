"""Tokens and passwords, which no config, log, result or error may hold: found in what is given, hidden in printing."""

import os
import re

OF_TOKENS = re.compile(r"(?:TOKEN|API_KEY|SECRET|PASSWORD)$")
"""Ends of the names of environment variables whose values are secret: WANDB_API_KEY, HF_TOKEN, OPENAI_API_KEY, ..."""
SHORTEST = 8
"""Characters of such a value that is looked for; a shorter one could be any word."""
IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+:[^\s/@'\"]+(?=@)")
"""User and password of a URL."""
OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
HIDDEN = "***"


def secret_in(text: str) -> str | None:
    """What secret a text holds, in words without the secret itself; None where it holds none."""
    for name, value in _of_environment():
        if value in text:
            return f"the value of {name}"
    if IN_URL.search(text):
        return "the password of a URL"
    return "a token of the Hugging Face hub" if OF_THE_HUB.search(text) else None


def without_secrets(text: str) -> str:
    """The text with every secret replaced by ***."""
    for _, value in _of_environment():
        text = text.replace(value, HIDDEN)
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """The text with tokens of the hub and passwords in URLs, which are known by their form, replaced by ***."""
    return OF_THE_HUB.sub(HIDDEN, IN_URL.sub(HIDDEN, text)) if "://" in text or "hf_" in text else text


def _of_environment() -> list[tuple[str, str]]:
    """Names and values of the environment's tokens, long values first: one may begin as another."""
    found = [(name, value) for name, value in os.environ.items() if OF_TOKENS.search(name) and len(value) >= SHORTEST]
    return sorted(found, key=lambda item: -len(item[1]))
