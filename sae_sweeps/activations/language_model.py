"""A causal language model in Hugging Face format, run up to one layer, or to its logits with that layer replaced.

The model is transformers' own, untouched: harvest then costs what the bare forward pass costs. Hooks have
TransformerLens' names and meaning (the weights as `from_pretrained_no_processing` leaves them), so that an SAE trained
here means the same thing there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sae_sweeps.config.facts import model_folder
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError, DataError, NoNetwork
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.hub import hub_is_reachable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SUBMODULES = {"attn_out": ("attn", "attention", "self_attn"), "mlp_out": ("mlp",)}


class _LayerReached(Exception):
    """Ends a forward pass once the layer's activations are known."""


class LanguageModel:
    """A frozen causal language model and its tokenizer.

    Attributes:
        d_in: width of the residual stream.
        n_layers: number of blocks.
        max_context: tokens that the model can read at once; None where its config has no limit.
        bos_id: id of BOS, or of EOS where the tokenizer has no BOS (GPT-2's custom); None if it has neither.
        special_ids: ids of padding, EOS and BOS, as far as the tokenizer has them.
    """

    def __init__(self, model: Any, tokenizer: Any, default_layer: int | None = None):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        config = model.config.get_text_config()
        self.d_in: int = config.hidden_size
        self.n_layers: int = config.num_hidden_layers
        self.max_context: int | None = getattr(config, "max_position_embeddings", None)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.default_layer = self.n_layers // 2 if default_layer is None else default_layer
        eos_id = tokenizer.eos_token_id
        self.bos_id: int | None = eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.special_ids = frozenset(i for i in (tokenizer.pad_token_id, eos_id, self.bos_id) if i is not None)

    def layer_index(self, layer: LayerConfig) -> int:
        """Number of the layer from 0; the model's default when `layer.index` is null."""
        index = self.default_layer if layer.index is None else layer.index
        if not 0 <= index < self.n_layers:
            raise ConfigError(
                f"layer={index}: the model has {self.n_layers} layers; choose one from 0 to {self.n_layers - 1}."
            )
        check_values(layer, "layer")
        return index

    def hook_name(self, layer: LayerConfig) -> str:
        """TransformerLens' name of the hook, for example `blocks.3.hook_resid_post`."""
        return f"blocks.{self.layer_index(layer)}.hook_{layer.hook}"

    def tokenize_rows(self, texts: list[str], context: int) -> Tensor:
        """One row per text: BOS if the tokenizer has one, the text cut to `context` tokens, padding [n, longest].

        BOS is added as TransformerLens does, whether or not the tokenizer would by itself. Padding is on the right
        whatever the tokenizer's setting, so that no text token attends to it.
        """
        start = [] if self.bos_id is None else [self.bos_id]
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        rows = [(start + row)[:context] for row in ids]
        fill = self.tokenizer.pad_token_id
        fill = self.tokenizer.eos_token_id if fill is None else fill
        fill = 0 if fill is None else fill
        longest = max(map(len, rows))
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])

    @torch.no_grad()
    def activations(self, tokens_SL: Tensor, layer: LayerConfig) -> Tensor:
        """Activations [S, L, d_in] at the layer, in the model's dtype; no later layer is computed."""
        reached: list[Tensor] = []

        def keep(acts_SLD: Tensor) -> Tensor:
            reached.append(acts_SLD)
            raise _LayerReached

        with self._hooked(layer, keep):
            try:
                self.model.base_model(tokens_SL.to(self.device), use_cache=False)
            except _LayerReached:
                pass
        return reached[0]

    @torch.no_grad()
    def logits(
        self, tokens_SL: Tensor, layer: LayerConfig | None = None, replace: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits [S, L, vocabulary]; with `replace`, activations x [S, L, d_in] at `layer` become replace(x)."""
        tokens_SL = tokens_SL.to(self.device)
        if layer is None or replace is None:
            return self.model(tokens_SL, use_cache=False).logits
        with self._hooked(layer, replace):
            return self.model(tokens_SL, use_cache=False).logits

    @torch.no_grad()
    def resume(self, tokens_SL: Tensor, layer: LayerConfig, x_SLD: Tensor) -> Tensor:
        """Last hidden states [S, L, hidden] of a forward pass in which the layer's activations are `x_SLD`.

        Blocks up to a residual-stream layer are not computed at all; for mlp_out and attn_out they are, once more.
        """
        x_SLD = x_SLD.to(self.device, self.dtype)
        with self._resumed(layer, x_SLD):
            return self.model.base_model(tokens_SL.to(self.device), use_cache=False).last_hidden_state

    @torch.no_grad()
    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of last hidden states [..., hidden]."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @contextmanager
    def _resumed(self, layer: LayerConfig, x_SLD: Tensor) -> Iterator[None]:
        if layer.hook != "resid_post":
            with self._hooked(layer, lambda _: x_SLD):
                yield
            return
        blocks, index, wrapped = self._blocks(), self.layer_index(layer), self._blocks_return_tuples

        def passed(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden,) if wrapped else hidden

        def given(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (x_SLD,) if wrapped else x_SLD

        try:
            for number in range(index + 1):
                blocks[number].forward = given if number == index else passed
            yield
        finally:
            for number in range(index + 1):
                blocks[number].__dict__.pop("forward", None)

    @cached_property
    def _blocks_return_tuples(self) -> bool:
        """Whether blocks return tuples, which depends on the version of transformers."""
        found: list[bool] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(isinstance(output, tuple))
            raise _LayerReached

        handle = self._blocks()[0].register_forward_hook(look)
        try:
            self.model.base_model(torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        except _LayerReached:
            pass
        finally:
            handle.remove()
        return found[0]

    def _blocks(self) -> nn.ModuleList:
        lists = (module for module in self.model.base_model.modules() if isinstance(module, nn.ModuleList))
        return next(blocks for blocks in lists if len(blocks) == self.n_layers)

    @contextmanager
    def _hooked(self, layer: LayerConfig, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):  # attention returns its weights beside its output
                return (change(output[0]).to(output[0].dtype), *output[1:])
            return change(output).to(output.dtype)

        handle = self._module(layer).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _module(self, layer: LayerConfig) -> nn.Module:
        """The module whose output is the hook's activation."""
        index = self.layer_index(layer)
        block = self._blocks()[index]
        if layer.hook == "resid_post":
            return block
        names = _SUBMODULES[layer.hook]
        if hasattr(block, "post_feedforward_layernorm"):
            # Gemma 2 and similar models normalise the outputs of attention and MLP before they are added to the stream.
            names = ("post_attention_layernorm",) if layer.hook == "attn_out" else ("post_feedforward_layernorm",)
        for name in names:
            if hasattr(block, name):
                return getattr(block, name)
        raise ConfigError(
            f"layer.hook={layer.hook} is not known for {type(self.model).__name__}; use layer.hook=resid_post."
        )


def load_language_model(cfg: ModelConfig, device: torch.device | str) -> LanguageModel:
    """Loads weights and tokenizer, unprocessed, in `cfg.dtype` on `device`.

    Raises:
        ConfigError: the config names no language model, or an unknown dtype.
        DataError: the folder is missing or does not hold a causal language model.
        NoNetwork: a hub model is not in the local cache and cannot be fetched.
    """
    check_values(cfg, "model")
    name, options = _locate(cfg)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            model, info = _load_weights(AutoModelForCausalLM, name, DTYPES[cfg.dtype], options)
        except Exception as error:  # transformers raises many types here
            raise _load_error(cfg, name, error) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise DataError(f"model={name}: the weights lack {missing}; save or download the model again.")
    if info["unexpected_keys"]:  # less those that transformers knows to be harmless
        found = ", ".join(sorted(info["unexpected_keys"])[:3])
        raise DataError(
            f"model={name}: {type(model).__name__} has no place for the weights {found}, so its logits would be wrong; "
            "save the model as an architecture that has them."
        )
    return LanguageModel(model.to(device), tokenizer, cfg.default_layer)


def _locate(cfg: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Folder or hub name, and the options of `from_pretrained` that go with it."""
    if cfg.source == "hub":
        if not cfg.path:
            raise ConfigError(
                "model.path is empty: give the model's name on the hub, as model=hub model.path=ORG/NAME."
            )
        return cfg.path, {"revision": cfg.revision, "local_files_only": not hub_is_reachable()}
    folder = model_folder(cfg)
    if folder is None:
        raise ConfigError(f"model.source={cfg.source} has no language model; choose builtin, local or hub.")
    if not (folder / "config.json").is_file():
        raise DataError(f"model={folder}: has no config.json; give a folder in Hugging Face format.")
    return str(folder), {"local_files_only": True}


def _load_weights(
    auto_class: Any, name: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of weights that the checkpoint lacks and that are random therefore."""
    return auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)


def _load_error(cfg: ModelConfig, name: str, error: Exception) -> Exception:
    if cfg.source != "hub":
        return DataError(f"model={name}: not a causal language model that transformers can load ({one_line(error)}).")
    if "gated" in str(error).lower():
        return NoNetwork(f"model={name} is gated: accept its terms at https://huggingface.co/{name} and set HF_TOKEN.")
    if isinstance(error, OSError):
        return NoNetwork(
            f"model={name} is not in the local cache and could not be fetched: check the name, or on a machine with a "
            f"network run `hf download {name} --local-dir DIR`, copy DIR here and use model=DIR."
        )
    return DataError(f"model={name}: transformers cannot load it ({one_line(error)}).")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and advice off the screen while a model loads."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
