"""The model that unlearning is judged on: the one that the SAE was trained on, or its instruction-tuned sibling."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.schema import ModelConfig
from sae_sweeps.errors import ConfigError


def judged_model(word: str, trained: ModelConfig) -> ModelConfig:
    """The model of `eval.unlearning.model`; `trained` itself where it is that.

    Raises ConfigError for a word that is no model.
    """
    if word == "auto":
        word = sibling(trained) or "same"
    if word == "same":
        return trained
    folder = Path(word).expanduser()
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", word):
        raise ConfigError(
            f"eval.unlearning.model={word}: is no folder and no name on the hub; give one, or same for the model that "
            "the SAE was trained on."
        )
    source, path = ("local", str(folder)) if folder.is_dir() else ("hub", word)
    return replace(trained, name=folder.name, source=source, path=path, revision=None, instruct=None)


def sibling(model: ModelConfig) -> str | None:
    """The instruction-tuned sibling that the model's YAML names, or the YAML of the same hub model."""
    if model.instruct or model.source != "hub":
        return model.instruct
    return siblings().get(model.path)


@cache
def siblings() -> dict[str | None, str | None]:
    """The instruction-tuned sibling of each hub model that has a YAML, by the model's hub name."""
    known: list[Any] = [OmegaConf.load(path) for path in (config_dir() / "model").glob("*.yaml")]
    return {yaml.get("path"): yaml.get("instruct") for yaml in known}
