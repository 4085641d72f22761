"""A causal language model in Hugging Face format, run up to one place, or to its logits with that place replaced.

The model is transformers' own, untouched: harvest then costs what the bare forward pass costs. Places have
TransformerLens' names and meaning (the weights as `from_pretrained_no_processing` leaves them), so that an SAE trained
here means the same thing there. They are hooks on the model's own modules; what is on none of them (a normalised
activation, a scaled term of the stream) is read from TransformerLens' bridge over the same weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from sae_sweeps.config.facts import model_folder
from sae_sweeps.config.hooks import STREAM, hook_in_block, hook_name, with_short_hook
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.config.typed import check_values
from sae_sweeps.errors import ConfigError, DataError, NoNetwork, out_of_memory
from sae_sweeps.lens import SWITCHES, Lens, Site, without_copies
from sae_sweeps.storage.files import one_line
from sae_sweeps.storage.hub import hub_is_reachable

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LENGTHS = ("max_position_embeddings", "max_seq_len")
"""Names of the config's limit of tokens read at once (MPT has the second)."""


class _Reached(Exception):
    """Ends a forward pass once what was wanted of it is known."""


class LanguageModel:
    """A frozen causal language model and its tokenizer.

    Attributes:
        d_in: width of the residual stream; of a hook, `width`.
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
        self.max_context: int | None = next((getattr(config, key) for key in LENGTHS if hasattr(config, key)), None)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.default_layer = self.n_layers // 2 if default_layer is None else default_layer
        eos_id = tokenizer.eos_token_id
        self.bos_id: int | None = eos_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.special_ids = frozenset(i for i in (tokenizer.pad_token_id, eos_id, self.bos_id) if i is not None)
        self._sites: dict[str, Site] = {}
        self._switched: dict[str, Lens] = {}

    def layer_index(self, layer: LayerConfig) -> int:
        """Number of the layer from 0; the model's default when `layer.index` is null."""
        index = self.default_layer if layer.index is None else layer.index
        if not 0 <= index < self.n_layers:
            raise ConfigError(
                f"layer={index}: the model has {self.n_layers} layers; choose one from 0 to {self.n_layers - 1}."
            )
        return index

    def width(self, layer: LayerConfig) -> int:
        """Width of the layer's activations, read from them. Raises ConfigError where `layer.d_in` is another."""
        layer = self._placed(layer)
        width = self.d_in if layer.hook in STREAM else self.activations(self._few_tokens, layer).shape[-1]
        if layer.d_in not in (None, width):
            raise ConfigError(f"layer.d_in={layer.d_in}: {hook_name(layer)} is {width} wide; give layer.d_in=null.")
        return width

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

    def activations(self, tokens_SL: Tensor, layer: LayerConfig) -> Tensor:
        """Activations [S, L, width] at the layer, in the model's dtype; no later layer is computed."""
        return self.activations_at(tokens_SL, [layer])[0]

    @torch.no_grad()
    def activations_at(self, tokens_SL: Tensor, layers: Sequence[LayerConfig]) -> list[Tensor]:
        """Activations [S, L, width] at each of the layers, of one pass that ends at the deepest.

        What is on none of the model's own modules has a pass to itself: some modules of TransformerLens take another
        path where they are hooked, and each place is to have the bits that it has alone.
        """
        sites = [self.site(layer) for layer in layers]
        passes: dict[int | None, dict[int, Site]] = {}
        for number, site in enumerate(sites):
            passes.setdefault(None if site.kind != "point" else number, {})[number] = site
        found: dict[int, Tensor] = {}
        for read in passes.values():
            found |= self._read(next(iter(read.values())).model, read, tokens_SL.to(self.device))
        if unread := [layers[number] for number in range(len(layers)) if number not in found]:
            raise ConfigError(f"layer.hook={unread[0].hook}: {self.family} never computes it; choose another hook.")
        return [found[number] for number in range(len(layers))]

    def _read(self, model: Any, sites: dict[int, Site], tokens_SL: Tensor) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}

        def keep(number: int, x_SLD: Tensor) -> None:
            # a copy where the pass goes on: Falcon adds to such tensors in place
            found[number] = x_SLD.clone() if len(sites) > 1 else x_SLD
            if len(found) == len(sites):
                raise _Reached

        with ExitStack() as stack:
            for number, site in sites.items():
                stack.enter_context(site.hooked(tokens_SL, partial(keep, number)))
            try:
                model.base_model(tokens_SL, use_cache=False)
            except _Reached:
                pass
        return found

    @torch.no_grad()
    def logits(
        self, tokens_SL: Tensor, layer: LayerConfig | None = None, replace: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits [S, L, vocabulary]; with `replace`, activations x [S, L, width] at `layer` become replace(x)."""
        tokens_SL = tokens_SL.to(self.device)
        if layer is None or replace is None:
            return self.model(tokens_SL, use_cache=False).logits
        site = self.site(layer)
        with site.hooked(tokens_SL, lambda x_SLD: replace(x_SLD).clone()):
            return site.model(tokens_SL, use_cache=False).logits

    @torch.no_grad()
    def resume(self, tokens_SL: Tensor, layer: LayerConfig, x_SLD: Tensor) -> Tensor:
        """What the model unembeds [S, L, hidden] in a forward pass in which the layer's activations are `x_SLD`.

        Blocks up to a residual-stream layer are not computed at all; for other hooks they are, once more.
        """
        x_SLD = x_SLD.to(self.device, copy=True)  # Falcon adds to it in place
        with self._resumed(layer, tokens_SL, x_SLD) as model:
            return self._before_unembedding(model, tokens_SL)

    @torch.no_grad()
    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of what the model unembeds [..., hidden], as its own forward pass has them.

        The pass is one of a single token through no block, in which `hidden` takes the place of what is unembedded:
        scales, soft caps and biases of the logits are the model's.
        """

        def given(module: nn.Module, args: Any) -> tuple[Tensor, ...]:
            return (hidden, *args[1:])

        handle = self._unembedding(self.model).register_forward_pre_hook(given)
        try:
            with self._passing(self.n_layers):
                return self.model(self._few_tokens[:1, :1], use_cache=False).logits
        finally:
            handle.remove()

    def _before_unembedding(self, model: Any, tokens_SL: Tensor) -> Tensor:
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any) -> None:
            found.append(args[0])
            raise _Reached

        handle = self._unembedding(model).register_forward_pre_hook(keep)
        try:
            model(tokens_SL.to(self.device), use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    @staticmethod
    def _unembedding(model: Any) -> nn.Module:
        return model.get_output_embeddings()

    @contextmanager
    def _resumed(self, layer: LayerConfig, tokens_SL: Tensor, x_SLD: Tensor) -> Iterator[Any]:
        """While it is open, the model that is yielded has `x_SLD` at the layer."""
        layer = self._placed(layer)
        if layer.hook not in ("resid_pre", "resid_post"):
            site = self.site(layer)
            with site.hooked(tokens_SL, lambda _: x_SLD):
                yield site.model
            return
        x_SLD = x_SLD.to(self.dtype)
        first = self.layer_index(layer) + (layer.hook == "resid_post")
        with self._passing(first, x_SLD):
            if first:
                yield self.model
            else:
                with self.site(layer).hooked(tokens_SL, lambda _: x_SLD):
                    yield self.model

    @contextmanager
    def _passing(self, n_blocks: int, x_SLD: Tensor | None = None) -> Iterator[None]:
        """While it is open, the first blocks compute nothing, and the last of them gives `x_SLD`, if any."""
        blocks, wrapped = self._blocks(), self._blocks_return_tuples

        def passed(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (hidden,) if wrapped else hidden

        def given(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return (x_SLD,) if wrapped else x_SLD

        try:
            for number in range(n_blocks):
                blocks[number].forward = passed if x_SLD is None or number < n_blocks - 1 else given
            yield
        finally:
            for number in range(n_blocks):
                blocks[number].__dict__.pop("forward", None)

    @cached_property
    def _blocks_return_tuples(self) -> bool:
        """Whether blocks return tuples, which depends on the version of transformers."""
        found: list[bool] = []

        def look(module: nn.Module, args: Any, output: Any) -> None:
            found.append(isinstance(output, tuple))
            raise _Reached

        handle = self._blocks()[0].register_forward_hook(look)
        try:
            self.model.base_model(self._few_tokens[:1, :1], use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return found[0]

    def _blocks(self) -> nn.ModuleList:
        lists = (module for module in self.model.base_model.modules() if isinstance(module, nn.ModuleList))
        return next(blocks for blocks in lists if len(blocks) == self.n_layers)

    @property
    def family(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__

    @cached_property
    def _few_tokens(self) -> Tensor:
        """Tokens on which places are compared [2, 7]."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        return torch.randint(rows, (2, 7), generator=torch.Generator().manual_seed(0)).to(self.device)

    def _placed(self, layer: LayerConfig) -> LayerConfig:
        """The layer with its short hook and its number."""
        layer = with_short_hook(layer)
        return replace(layer, index=self.layer_index(layer))

    def site(self, layer: LayerConfig) -> Site:
        """Where the layer's activations are.

        Raises:
            ConfigError: the family has no such hook, or what it gives is not what its name means.
        """
        layer = self._placed(layer)
        name = hook_name(layer)
        if name not in self._sites:
            block = self._blocks()[layer.index or 0]
            self._sites[name] = (
                Site(self.model, block, "input" if layer.hook == "resid_pre" else "output")
                if layer.hook in ("resid_pre", "resid_post")
                else self._site_of_lens(layer)
            )
        return self._sites[name]

    @cached_property
    def _lens(self) -> Lens:
        return Lens(self.model)

    def _lens_for(self, hook: str) -> Lens:
        """One of its own for hooks that have to be switched on: the switch changes how others are computed."""
        switch = next((switch for ending, switch in SWITCHES.items() if hook.endswith(ending)), None)
        if switch is None:
            return self._lens
        if switch not in self._switched:
            self._switched[switch] = Lens(self.model)
        return self._switched[switch]

    @cached_property
    def _plain(self) -> Any:
        """A twin of the model that computes attention by plain products, as TransformerLens does."""
        twin = without_copies(self.model)
        twin.set_attn_implementation("eager")
        return twin

    @torch.no_grad()
    def _site_of_lens(self, layer: LayerConfig) -> Site:
        """The place on the model's own modules where that is what TransformerLens' hook is, else TransformerLens'.

        Both are run on a few tokens, as they are and with the activation halved.
        """
        lens, index = self._lens_for(hook_in_block(layer.hook)), layer.index or 0
        of_lens = Site(lens.model, lens.point(index, hook_in_block(layer.hook)), "point")
        try:
            x_SLD, halved, logits = self._of_lens(layer, of_lens)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error):
                raise
            raise ConfigError(
                f"layer.hook={layer.hook}: TransformerLens cannot compute it for {self.family} ({one_line(error)})."
            ) from error
        if torch.equal(halved, self._before_unembedding(lens.model, self._few_tokens)):
            raise ConfigError(f"layer.hook={layer.hook}: {self.family} computes nothing from it; choose another hook.")
        if (place := lens.place(of_lens.module)) is not None:
            path, kind = place
            kind = "stream" if layer.hook == "resid_mid" else kind
            plain = Site(self._plain, self._plain.get_submodule(path), kind)
            after = Site(self._plain, self._plain.get_submodule(self._path_of_block(index)), "output")
            if self._close(self._at(plain), x_SLD) and self._close(
                self._with(plain, x_SLD / 2, after if layer.hook == "resid_mid" else None), halved
            ):
                return Site(self.model, self.model.get_submodule(path), kind)
        if layer.hook == "resid_mid" or not self._close(self._plain(self._few_tokens, use_cache=False).logits, logits):
            raise ConfigError(
                f"layer.hook={layer.hook}: what TransformerLens computes for {self.family} is not what the model "
                "itself does; use resid_pre or resid_post."
            )
        return of_lens

    def _path_of_block(self, index: int) -> str:
        block = self._blocks()[index]
        return next(name for name, module in self.model.named_modules() if module is block)

    def _of_lens(self, layer: LayerConfig, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """TransformerLens' activation of a few tokens, what is unembedded where it is halved, and its logits.

        For resid_mid, the stream after the layer instead of what is unembedded: TransformerLens gives a replaced
        stream to the norm alone, and here it is to reach the residual too, as if attention had added the difference.
        """
        lens, index = self._lens, layer.index or 0
        x_SLD = self._at(site)
        if x_SLD is None:
            raise ConfigError(f"layer.hook={layer.hook}: {self.family} never computes it; choose another hook.")
        if layer.hook in ("attn_out", "mlp_out", "resid_mid"):
            self._check_terms(layer)
        if layer.hook == "resid_mid":
            attn_out, before, after = (
                Site(site.model, lens.point(index, f"hook_{name}"), "point")
                for name in ("attn_out", "resid_pre", "resid_post")
            )
            pre_SLD = self._at(before)
            assert pre_SLD is not None
            halved = self._with(attn_out, (x_SLD.double() / 2 - pre_SLD).to(x_SLD.dtype), after)
        else:
            halved = self._with(site, x_SLD / 2)
        return x_SLD, halved, site.model(self._few_tokens, use_cache=False).logits

    def _at(self, site: Site) -> Tensor | None:
        """The activation of a few tokens."""
        return self._read(site.model, {0: site}, self._few_tokens).get(0)

    def _with(self, site: Site, x_SLD: Tensor, read: Site | None = None) -> Tensor:
        """What is unembedded for a few tokens with `x_SLD` at the place; with `read`, the activation there."""
        with site.hooked(self._few_tokens, lambda _: x_SLD.clone()):
            found = self._before_unembedding(site.model, self._few_tokens) if read is None else self._at(read)
        assert found is not None
        return found

    def _close(self, x: Tensor | None, y: Tensor | None) -> bool:
        """Whether two ways to compute the same differ by no more than rounding: at each token by half of the digits."""
        if x is None or y is None or x.shape != y.shape:
            return False
        x, y = x.double(), y.double()
        return bool(((x - y).norm(dim=-1) <= torch.finfo(self.dtype).eps ** 0.5 * y.norm(dim=-1)).all())

    def _check_terms(self, layer: LayerConfig) -> None:
        """Raise ConfigError unless resid_pre + attn_out + mlp_out = resid_post, with a replaced term too.

        So the terms are what is added to the stream, and reach what follows by way of the stream alone.
        """
        lens, index = self._lens, layer.index or 0
        names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        sites = {n: Site(lens.model, lens.point(index, f"hook_{name}"), "point") for n, name in enumerate(names)}
        for scale in (1.0, 0.5):
            with ExitStack() as stack:
                if scale != 1 and layer.hook in names:
                    site = sites[names.index(layer.hook)]
                    stack.enter_context(site.hooked(self._few_tokens, lambda x_SLD: scale * x_SLD))  # noqa: B023
                pre, attn, mlp, post = (
                    x.double() for _, x in sorted(self._read(lens.model, sites, self._few_tokens).items())
                )
            worst = ((pre + attn + mlp - post).abs() / (pre.abs() + attn.abs() + mlp.abs() + post.abs())).max()
            if not worst <= 4 * torch.finfo(self.dtype).eps:
                raise ConfigError(
                    f"layer.hook={layer.hook}: in {self.family} the stream after layer {index} is not the one before "
                    f"it plus attn_out and mlp_out (off by {worst:.1g} of their size); use resid_pre or resid_post."
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
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
            model, info = _load_weights(AutoModelForCausalLM, name, DTYPES[cfg.dtype], options)
        except Exception as error:  # transformers raises many types here
            if out_of_memory(error):
                raise
            raise _load_error(cfg, name, error) from error
    if model.get_output_embeddings() is None:
        raise DataError(f"model={name}: {type(model).__name__} predicts no tokens; give a causal language model.")
    _check_tokenizer(name, tokenizer, model)
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise DataError(f"model={name}: the weights lack {missing}; save or download the model again.")
    if info["unexpected_keys"]:  # less those that transformers lists as harmless
        found = ", ".join(sorted(info["unexpected_keys"])[:3])
        raise DataError(
            f"model={name}: {type(model).__name__} has no place for the weights {found}, so its logits would be wrong; "
            "save the model as an architecture that has them."
        )
    return LanguageModel(model.to(device), tokenizer, cfg.default_layer)


def _check_tokenizer(name: str, tokenizer: Any, model: Any) -> None:
    """Raise DataError for a tokenizer that has tokens which the model does not embed."""
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        tokens = ", ".join(token for _, token in beyond[:3]) + ", ..." * (len(beyond) > 3)
        raise DataError(
            f"model={name}: the model embeds {rows} tokens and its tokenizer has {len(beyond)} beyond ({tokens}); save "
            "the model with a tokenizer of its own, or its embedding resized."
        )


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
    return auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True, trust_remote_code=False, **options)


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
