"""Sizes of a language model, read from its config.json without loading it."""

import json
from dataclasses import dataclass
from pathlib import Path

from sae_sweeps.config.hooks import STREAM, hook_in_block
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.storage.files import one_line

WIDTHS = ("hidden_size", "n_embd", "d_model")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Names under which the families' config.json has the width of the residual stream and the number of layers."""

BUILTIN_MODEL = Path(__file__).parent.parent / "builtin" / "model"


@dataclass(frozen=True)
class ModelFacts:
    d_in: int
    n_layers: int
    vocabulary: int | None = None


def model_folder(cfg: ModelConfig) -> Path | None:
    """Folder in Hugging Face format, or None for hub names and synthetic activations."""
    if cfg.source == "builtin":
        return BUILTIN_MODEL
    if cfg.source != "local":
        return None
    if not cfg.path:
        raise ConfigError("model.path is empty: give the folder of a model in Hugging Face format, as model=PATH.")
    folder = Path(cfg.path).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        from sae_sweeps.gguf import folder_of

        return folder_of(folder.resolve())
    if cfg.name == "smollm2-135m" and not folder.exists():
        raise DataError(f"model=smollm2-135m: {folder} is not there; `make smollm2` downloads and makes it (98 MB).")
    if not folder.is_dir():
        raise DataError(f"model={cfg.path}: no such folder; give a folder with a model in Hugging Face format.")
    return folder


def model_facts(cfg: ModelConfig) -> ModelFacts:
    """d_in and number of layers, from config.json: in the folder of a local model, else from the hub or its cache."""
    if cfg.source == "synthetic":
        if not cfg.d_in or cfg.d_in < 1:
            raise ConfigError(f"model.d_in={cfg.d_in}: must be above 0.")
        return ModelFacts(cfg.d_in, 1)
    folder = model_folder(cfg)
    if folder is None and cfg.d_in and cfg.n_layers:
        return ModelFacts(cfg.d_in, cfg.n_layers, cfg.vocabulary)
    path = folder / "config.json" if folder else _hub_config(cfg)
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(f"model={folder}: has no config.json; give a folder in Hugging Face format.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({one_line(error)}); save the model again.") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds no JSON object; save the model again.")
    if config.get("is_encoder_decoder"):
        raise DataError(
            f"model={cfg.path}: is an encoder-decoder model ({config.get('model_type')}); give a causal language model."
        )
    config = config.get("text_config", config)
    d_in = next((config[key] for key in WIDTHS if key in config), None) or cfg.d_in
    n_layers = next((config[key] for key in DEPTHS if key in config), None) or cfg.n_layers
    if not d_in or not n_layers:
        raise DataError(f"{path}: names no hidden size or number of layers; set model.d_in and model.n_layers.")
    return ModelFacts(int(d_in), int(n_layers), config.get("vocab_size") or cfg.vocabulary)


def activation_width(cfg: ModelConfig, layer: LayerConfig, facts: ModelFacts) -> int:
    """Width of the layer's activations: the stream's for its hooks, else read from a small model made by the config.

    Raises:
        ConfigError: the model has no such hook, or `layer.d_in` is not the stream's width where it has to be.
    """
    if layer.hook in STREAM or cfg.source == "synthetic":
        if layer.d_in not in (None, facts.d_in):
            raise ConfigError(f"layer.d_in={layer.d_in}: {layer.hook} is {facts.d_in} wide; give layer.d_in=null.")
        return facts.d_in
    if layer.d_in:
        return layer.d_in
    from sae_sweeps.lens import hook_width

    folder = model_folder(cfg)
    return hook_width(folder / "config.json" if folder else _hub_config(cfg), hook_in_block(layer.hook))


def _hub_config(cfg: ModelConfig) -> Path:
    from huggingface_hub import hf_hub_download

    from sae_sweeps.errors import NoNetwork
    from sae_sweeps.storage.hub import hub_is_reachable

    if not cfg.path:
        raise ConfigError("model.path is empty: give the model's name on the hub, as model=hub model.path=ORG/NAME.")
    try:
        return Path(
            hf_hub_download(cfg.path, "config.json", revision=cfg.revision, local_files_only=not hub_is_reachable())
        )
    except Exception as error:
        raise NoNetwork(
            f"model.path={cfg.path}: its config could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}); check the name, or download it where there is a network "
            f"(hf download {cfg.path} --local-dir DIR) and give model=DIR."
        ) from None
