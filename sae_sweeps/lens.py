"""TransformerLens' hooks of a Hugging Face causal model, and where they lie on the model's own modules.

TransformerLens knows each family: which module's output is what attention adds to the stream, what is scaled or
normalised on the way. It is imported only for hooks that need it; that takes some seconds.
"""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sae_sweeps.errors import ConfigError, UserError, out_of_memory

Change = Callable[[Tensor], Tensor | None]
"""What takes an activation's place; None where it is only read."""

SWITCHES = {
    "attn.hook_result": "set_use_attn_result",
    "hook_q_input": "set_use_split_qkv_input",
    "hook_k_input": "set_use_split_qkv_input",
    "hook_v_input": "set_use_split_qkv_input",
    "hook_mlp_in": "set_use_hook_mlp_in",
    "hook_attn_in": "set_use_attn_in",
}
"""Hooks that TransformerLens computes only once they are switched on, and the bridge's method for it."""


@dataclass(frozen=True)
class Site:
    """A place in a model's forward pass whose activation can be read and replaced."""

    model: Any
    """The model to run: the loaded one, or TransformerLens' twin of it."""
    module: Any
    kind: str
    """input or output of the module; stream: its input, overwritten in place so that the residual connection around
    the module sees it too; point: a HookPoint of TransformerLens."""

    @contextmanager
    def hooked(self, tokens_SL: Tensor, change: Change) -> Iterator[None]:
        """While it is open, a pass over `tokens_SL` has change(x) for x [S, L, width] in place of the activation."""

        def changed(given: Tensor) -> Tensor | None:
            new = change(by_position(given, tokens_SL.shape))
            return None if new is None else new.to(given.dtype).reshape(given.shape)

        def output_hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return changed(output)
            new = changed(output[0])  # attention returns its weights beside its output
            return None if new is None else (new, *output[1:])

        def input_hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            key = None if args else next(name for name, value in kwargs.items() if isinstance(value, Tensor))
            given = args[0] if key is None else kwargs[key]
            new = changed(given)
            if new is None:
                return None
            if self.kind == "stream":
                given.copy_(new)
                return None
            return ((new, *args[1:]), kwargs) if key is None else (args, kwargs | {key: new})

        if self.kind == "point":
            # As TransformerLens adds it: some of its modules compute differently when a point has hooks
            self.module.add_hook(lambda given, hook: changed(given))
            handle = self.module.fwd_hooks[-1].hook
        elif self.kind == "output":
            handle = self.module.register_forward_hook(output_hook)
        else:
            handle = self.module.register_forward_pre_hook(input_hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            if self.kind == "point":
                self.module.fwd_hooks.pop()


def by_position(given: Tensor, shape: Sequence[int]) -> Tensor:
    """[S, L, width] of [S, L, width], [S * L, width] or [S, L, heads, d_head], whose heads lie one behind another.

    Raises:
        ConfigError: the activation has no row for each position, as an attention pattern has not.
    """
    n_rows, length = shape
    if given.shape[:2] == (n_rows, length) and given.ndim > 2:
        return given.flatten(2)
    if given.ndim == 2 and len(given) == n_rows * length:
        return given.view(n_rows, length, -1)
    raise ConfigError(
        f"layer.hook: an activation of shape {list(given.shape)} for {n_rows} x {length} tokens has no row for each "
        "position; choose another hook."
    )


def without_copies(model: Any) -> Any:
    """A twin of the model: modules of its own with the same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


class Lens:
    """TransformerLens' bridge over a twin of a model, which is left untouched.

    Attributes:
        model: the twin, run like the model itself; its attention is computed by plain products.
    """

    def __init__(self, model: Any):
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        self.family = type(model).__name__
        self.model = without_copies(model)
        self._path = {module: name for name, module in self.model.named_modules()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks that the family lacks
            try:
                self._bridge = build_bridge_from_module(self.model, self.family, hf_config=self.model.config)
            except Exception as error:  # TransformerLens raises many types here
                if out_of_memory(error):
                    raise
                text = " ".join(str(error).split())
                raise ConfigError(
                    f"layer.hook: TransformerLens has no hooks for {self.family} ({type(error).__name__}: {text}); "
                    "use resid_pre or resid_post."
                ) from error
        warnings.filterwarnings("ignore", "A forward hook edited hook_scale/hook_normalized")
        self._points: dict[str, Any] = self._bridge.hook_dict

    def names(self, index: int) -> list[str]:
        """Hooks of a layer, without `blocks.N.`."""
        start = f"blocks.{index}."
        return sorted(name.removeprefix(start) for name in self._points if name.startswith(start))

    def point(self, index: int, name: str) -> Any:
        """TransformerLens' HookPoint. Raises ConfigError with the nearest names where the layer has no such hook."""
        found = self._points.get(f"blocks.{index}.{name}")
        if found is None:
            known = self.names(index)
            near = difflib.get_close_matches(name, known, 3, 0.5) or difflib.get_close_matches(name, known, 3, 0.0)
            raise ConfigError(
                f"layer.hook={name}: {self.family} has no such hook in a layer; near it are {join(near)}."
            )
        for ending, switch in SWITCHES.items():
            if name.endswith(ending):
                try:
                    getattr(self._bridge, switch)(True)
                except NotImplementedError:
                    raise ConfigError(f"layer.hook={name}: TransformerLens has none for {self.family}.") from None
        return found

    def place(self, point: Any) -> tuple[str, str] | None:
        """The module of the model at whose input or output the hook lies, by its path, and which of the two."""
        for component in self._bridge.modules():
            own = component._modules.get("_original_component")
            for attribute, kind in (("hook_in", "input"), ("hook_out", "output")):
                if component._modules.get(attribute) is point and own in self._path:
                    return self._path[own], kind
        return None


def join(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


@lru_cache(maxsize=64)
def hook_width(config_file: Path, name: str) -> int:
    """Width of a hook's activation, read from a model of one layer that is made by a config.json, with few tokens.

    Raises:
        ConfigError: the family has no such hook, the hook has no row for each position, or no such model can be made.
    """
    try:
        return _width_of_one_layer(config_file, name)
    except UserError:
        raise
    except Exception as error:  # transformers and TransformerLens raise many types here
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if out_of_memory(error):
            text = "one layer of the model does not fit into memory"
        elif "trust_remote_code" in text:  # transformers would have us run it
            text = "the model needs Python code of its own, which is not run"
        raise ConfigError(
            f"layer.hook={name}: its width cannot be read from {config_file} ({text}); give it as layer.d_in=WIDTH."
        ) from error


def _width_of_one_layer(config_file: Path, name: str) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(config_file.parent, trust_remote_code=False)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size = 1, 64
    if isinstance(getattr(text, "layer_types", None), list):
        text.layer_types = text.layer_types[:1]
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, key, None)
    model = AutoModelForCausalLM.from_config(config).eval()
    lens = Lens(model)
    tokens_SL = torch.arange(14).view(2, 7)
    found: list[int] = []

    with (
        torch.no_grad(),
        Site(lens.model, lens.point(0, name), "point").hooked(tokens_SL, lambda x_SLD: found.append(x_SLD.shape[-1])),
    ):
        lens.model(tokens_SL, use_cache=False)
    if not found:
        raise ConfigError(f"layer.hook={name}: {lens.family} never computes it; choose another hook.")
    return found[0]
