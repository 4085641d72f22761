"""The Hugging Face hub: whether it is reachable, and which commit a branch or tag of a repository is at."""

import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_S = 5.0
"""Longest wait for a connection, and for an answer."""
COMMIT = re.compile(r"[0-9a-f]{40}")
OUT_OF_REACH = "the hub is out of reach"

_answers: dict[tuple[str | None, ...], tuple[str | None, str]] = {}
"""The hub's answers in this process: all runs of a command are at one commit, and a slow hub is queried once."""


def hub_is_reachable(timeout: float = TIMEOUT_S) -> bool:
    """Whether a connection to the hub opens within `timeout` seconds; behind a proxy it is assumed to.

    Checked first, since the hub's client retries for half a minute.
    """
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


def commit_of(kind: str, name: str, revision: str | None) -> tuple[str | None, str]:
    """The commit of a repository's branch, tag or commit, or None and why it is not known.

    The cache's own record comes first, so that a launch uses what was downloaded; without one the hub is queried.

    Args:
        kind: model or dataset.
        name: ORG/NAME.
        revision: None is the branch main.
    """
    revision = revision or "main"
    if COMMIT.fullmatch(revision):
        return revision, ""
    cache = _cache_of(kind, name)
    try:
        commit = (cache / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        commit = ""
    if COMMIT.fullmatch(commit):
        return commit, ""
    commit_or_none, why = _ask(kind, name, revision)
    if commit_or_none is None and cache.is_dir():
        held = sorted(path.name for path in cache.glob("snapshots/*") if COMMIT.fullmatch(path.name))
        why += f" (the cache holds {', '.join(held)} without the name {revision})" if held else ""
    return commit_or_none, why


def _cache_of(kind: str, name: str) -> Path:
    """The repository's folder in the hub's cache on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def _ask(kind: str, name: str, revision: str) -> tuple[str | None, str]:
    """The hub's answer, or the one that it gave before; once it was out of reach it is not tried again."""
    hub = (os.environ.get("HF_ENDPOINT"), os.environ.get("HF_HUB_OFFLINE"))
    if (*hub, OUT_OF_REACH) in _answers:
        return None, OUT_OF_REACH
    key = (*hub, kind, name, revision)
    if key not in _answers:
        _answers[key] = _request(hub[0], kind, name, revision)
        if _answers[key] == (None, OUT_OF_REACH):
            _answers[*hub, OUT_OF_REACH] = _answers[key]
    return _answers[key]


def _request(endpoint: str | None, kind: str, name: str, revision: str) -> tuple[str | None, str]:
    """The hub's answer to one request."""
    if not hub_is_reachable():
        return None, OUT_OF_REACH
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi(endpoint=endpoint).repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_S).sha
    except (RepositoryNotFoundError, HFValidationError):
        return None, "the hub has none of this name, or shows it after `hf auth login` only"
    except RevisionNotFoundError:
        return None, "the hub has no such branch or tag of it"
    except Exception as error:  # the client's and its transport's
        return None, f"the hub did not answer ({type(error).__name__})"
    return found, "" if found else "the hub names no commit"
