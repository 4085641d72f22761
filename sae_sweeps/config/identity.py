"""A run's identity: a short hash of all config values and files that affect its numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_sweeps.config.data import data_digest
from sae_sweeps.config.facts import model_folder
from sae_sweeps.config.plugins import FILE
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import ModelConfig
from sae_sweeps.errors import DamagedFile
from sae_sweeps.fields import at_added_default
from sae_sweeps.storage.digests import digest_of_files, short_hash
from sae_sweeps.storage.files import read_json

METHOD_VERSION = 4
"""Raised whenever the same config would give other numbers."""

# Paths, logging, evaluation and machine: they do not change what is trained.
LEFT_OUT = (
    "outputs", "device", "title", "description", "tags", "logger", "eval",
    "model.name", "model.source", "model.path", "model.default_layer", "model.default_d_sae", "model.vocabulary",
    "model.instruct",
    "data.name", "data.path", "data.forget", "data.retain",
    "activations.mode", "activations.memory_gb", "activations.disk_gb", "activations.device_gb",
    "train.log_every", "train.checkpoint_every", "train.checkpoint_minutes", "train.monitor_every",
    "train.held_out_tokens", "train.kernels", "layer.d_in",
)  # fmt: skip


IDENTITY = "identity.json"
"""In a run's folder: what its id is the hash of."""


def model_digest(cfg: ModelConfig, cache: Path | None = None) -> str:
    """Content digest of a local model; name and commit of a hub model; the world of a synthetic one."""
    if cfg.source == "synthetic":
        return "synthetic"
    folder = model_folder(cfg)
    if folder is None:
        return f"hub:{cfg.path}@{cfg.revision or 'main'}"
    patterns = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.name != "training.json"})
    return digest_of_files(files, cache)


def canonical(run: RunConfig, cache: Path | None = None, digests: dict[str, str] | None = None) -> dict[str, Any]:
    """The config values that affect a run's numbers, without unused keys, with digests of model and data.

    `digests` keeps those of the models and texts of several runs that are read together, each of which is read once.
    """
    digests = {} if digests is None else digests
    config = run.to_dict()
    config["num_tokens"] = run.total_steps * run.batch_size
    places = {"data": run.data, "train": run.train} | {term.place: term.config for term in run.penalty_terms()}
    added = (f"{place}.{key}" for place, node in places.items() for key in at_added_default(node))
    for key in (*LEFT_OUT, *run.unused_keys(), *added, *(f"{place}.{FILE}" for place in run.code)):
        _drop(config, key)
    if run.train.selection != "bfloat16":
        config["train"]["selection"] = "exact"  # whichever way, of one meaning
    groups: dict[str, Callable[[], str]] = {
        "model": lambda: model_digest(run.model, cache),
        "data": lambda: data_digest(run.data, cache),
    }
    for group, digest in groups.items():
        if group in config:
            key = repr((getattr(run, group), run.code.get(group)))
            if key not in digests:
                digests[key] = digest()
            config[group]["digest"] = digests[key]
    config["method_version"] = METHOD_VERSION
    return config


def recorded_identity(folder: Path) -> dict[str, Any] | None:
    """identity.json of a run's folder; None where an earlier version wrote none. Raises DamagedFile."""
    path = folder / IDENTITY
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(found.get(key, {}), dict) for key in ("model", "data")):
        raise DamagedFile(f"{path} is damaged (it holds no identity of a run); restore it.")
    return found


def text_of(identity: dict[str, Any]) -> dict[str, Any]:
    """What decides the tokens that are harvested, of what `canonical` returns; `data.max_norm` picks among them."""
    return {key: value for key, value in identity["data"].items() if key != "max_norm"}


def digests_of(identity: dict[str, Any]) -> dict[str, str]:
    """The digests of model and text in what `canonical` returns; synthetic activations have no text."""
    return {key: identity[key].get("digest") for key in ("model", "data") if key in identity}


def changed(run: RunConfig, before: dict[str, str], now: dict[str, str]) -> str | None:
    """Which of the run's model and text have other digests than before, in one sentence; None where none has."""
    found = [
        f"{_named(run, key)} holds {what} than the run's (digest {now.get(key)}, was {before[key]})"
        for key, what in (("model", "another model"), ("data", "other text"))
        if key in before and before[key] != now.get(key)
    ]
    if not found:
        return None
    return f"{' and '.join(found)}; restore it, or launch the command again for a run of its own."


def _named(run: RunConfig, group: str) -> str:
    """The words of a command that choose the run's model or text."""
    node = getattr(run, group)
    if node.path:
        return f"{group}.path={node.path}"
    if group == "data" and node.kind == "forget_retain":
        return f"data.forget={node.forget} data.retain={node.retain}"
    return f"{group}={node.name}"


def run_id(run: RunConfig, cache: Path | None = None) -> str:
    return short_hash(canonical(run, cache))


def _drop(config: dict[str, Any], dotted: str) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        config = config.get(parent, {})
    config.pop(leaf, None)
