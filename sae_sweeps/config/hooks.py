"""Names of the places in a language model that activations come from: short words, or TransformerLens' hook names."""

from __future__ import annotations

import re

from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import ConfigError

STREAM = ("resid_pre", "resid_post", "attn_out", "mlp_out")
"""Hooks of every layer that are as wide as the residual stream."""


def with_short_hook(layer: LayerConfig) -> LayerConfig:
    """The same place in the form that configs keep: `hook_resid_mid` is `resid_mid`, `blocks.3.attn.hook_z` is
    `attn.hook_z` with index 3, so that one place has one run id.

    Raises:
        ConfigError: the name has a layer's number, and `layer.index` is another one.
    """
    found = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", layer.hook)
    assert found is not None, layer.hook
    number, hook = found.groups()
    index = layer.index if number is None else int(number)
    if layer.index not in (None, index):
        raise ConfigError(
            f"layer.hook={layer.hook}: names layer {index}, and layer={layer.index} another; give layer.hook={hook}."
        )
    return LayerConfig(hook if "." in hook else hook.removeprefix("hook_"), index, layer.d_in)


def is_hook_name(word: str) -> bool:
    """Whether `layer=WORD` is a hook's name, and no choice of the group and no number."""
    return word.strip() in ("resid_pre", "resid_mid") or "hook_" in word


def hook_in_block(hook: str) -> str:
    """TransformerLens' name within a layer: `hook_mlp_out` for `mlp_out`, `attn.hook_z` as it is."""
    return hook if "." in hook else f"hook_{hook.removeprefix('hook_')}"


def hook_name(layer: LayerConfig) -> str:
    """TransformerLens' name of a place whose layer is known, for example `blocks.3.hook_resid_post`."""
    return f"blocks.{layer.index}.{hook_in_block(layer.hook)}"


def layer_of_hook_name(name: str) -> LayerConfig | None:
    """The place that a hook name of TransformerLens means; None where it is in no layer."""
    if not re.fullmatch(r"blocks\.\d+\.\w+(\.\w+)*", name):
        return None
    return with_short_hook(LayerConfig(name))
