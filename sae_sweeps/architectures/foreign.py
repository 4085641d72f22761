"""SAEs of other libraries on disk, in the terms of SAELens 6 (`saelens.py`): the content of a cfg.json, and weights.

Each format is known by the file of its weights. Formulas are the libraries' own at inference; what is not one of ours,
or would have to be guessed, is refused by name.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.architectures import saelens
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.errors import DamagedFile, DataError, UserError
from sae_sweeps.storage.arrays import read_npz, refuse_inflated
from sae_sweeps.storage.files import object_in, one_line

Parts = tuple[dict[str, Any], dict[str, Tensor]]
"""cfg.json of SAELens 6, and the tensors under its names."""

OLDER_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
METADATA = ("model_name", "hook_name", "prepend_bos", "context_size", "dataset_path", "neuronpedia_id")


def folder_of(path: Path) -> Path | None:
    """The folder of the SAE at a path, which may be the file of its weights; None where there is none."""
    folder = path.parent if path.name in FORMATS else path
    return folder if any((folder / name).is_file() for name in (*FORMATS, saelens.CFG_FILE)) else None


def read(folder: Path) -> Parts:
    """The SAE in a folder. Raises DataError for what is missing or not supported, DamagedFile for a damaged file."""
    name = next((name for name in FORMATS if (folder / name).is_file()), saelens.WEIGHTS_FILE)
    return FORMATS[name](folder)


def load(folder: Path) -> ExportedSAE:
    """The SAE in a folder, on the CPU. Raises as `read`."""
    return saelens.of_parts(*read(folder), folder)


def _saelens(folder: Path) -> Parts:
    """SAELens 6, whose description is as it is; versions 3 to 5 wrote one level, other names and defaults."""
    cfg = saelens.read_object(folder / saelens.CFG_FILE)
    weights = saelens.read_weights(folder / saelens.WEIGHTS_FILE)
    if "metadata" in cfg:
        return cfg, weights
    older = {OLDER_NAMES.get(name, name): value for name, value in cfg.items()}
    place = folder / saelens.CFG_FILE
    activation, settings = older.get("activation_fn", "relu"), object_in(older, "activation_fn_kwargs", place)
    if activation not in ("relu", "topk"):
        raise DataError(f"{place}: activation_fn_str={activation} is not supported; choose an SAE of relu or topk.")
    if older.get("finetuning_scaling_factor"):
        raise DataError(f"{place}: finetuning_scaling_factor is not supported; choose an SAE without.")
    architecture = "topk" if activation == "topk" else older.get("architecture", "standard")
    normalize = older.get("normalize_activations") or "none"
    return {
        **older,
        "architecture": architecture,
        "dtype": str(older.get("dtype", "float32")).removeprefix("torch."),
        "k": settings.get("k", older.get("k")),
        "apply_b_dec_to_input": older.get("apply_b_dec_to_input", True),
        "normalize_activations": "expected_average_only_in" if normalize is True else normalize,
        "reshape_activations": saelens.HOOK_Z if saelens.HOOK_Z in str(older.get("hook_name")) else "none",
        "metadata": {name: older[name] for name in METADATA if older.get(name) is not None},
    }, weights


def _gemma_scope(folder: Path) -> Parts:
    """params.npz of Gemma Scope (Lieberum et al., 2024): f = relu(z) 1[z > threshold], z = x W_enc + b_enc.

    Its folders are named gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82; where they still are, they give model
    and hook.
    """
    path = folder / "params.npz"
    try:
        weights = {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
    except TypeError as error:
        raise DamagedFile(f"{path} is damaged ({one_line(error)}); fetch it again.") from None
    parts = str(folder.resolve())
    layer = re.search(r"layer_(\d+)(?=/|$)", parts)
    model = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)\b", parts)
    hooks = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}
    hook = f"blocks.{layer[1]}.{hooks[model[3]]}" if layer and model else None
    name = f"google/gemma-2-{model[1]}{'-it' * (model[2] == 'it')}" if model else None
    return _description("jumprelu", weights, path, hook_name=hook, model_name=name, apply_b_dec_to_input=False), weights


def _dictionary_learning(folder: Path) -> Parts:
    """ae.pt and config.json of dictionary_learning, by its class; weights alone are read from the pickle."""
    path = folder / "ae.pt"
    config = saelens.read_object(folder / "config.json")
    trainer, buffer = (object_in(config, key, folder / "config.json") for key in ("trainer", "buffer"))
    kind = trainer.get("dict_class")
    try:
        refuse_inflated(path)
        with warnings.catch_warnings(action="ignore"):  # about the pickle's protocol, before it is refused
            state = torch.load(path, map_location="cpu", weights_only=True)
        for name, tensor in state.items():
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise ValueError(f"{name} has more numbers than are stored")
    except Exception as error:  # pickle, zip and torch each have their own; torch's advises to run the pickle's code
        why = f" ({error})" if isinstance(error, ValueError | UserError) else ""
        raise DamagedFile(f"{path} is damaged, or holds more than weights{why}; fetch it again.") from None
    if kind not in DICTIONARIES:
        raise DataError(
            f"{folder / 'config.json'}: dict_class={kind} is not supported; choose one of {_list(DICTIONARIES)}."
        )
    names, architecture, centred = DICTIONARIES[kind]
    if missing := [name for name in names if name not in state]:
        raise DataError(f"{path} has no tensor {', '.join(missing)}, which {kind} has; fetch it again.")
    matrices = ("encoder.weight", "decoder.weight")
    weights = {ours: state[name].T if name in matrices else state[name] for name, ours in names.items()}
    if "threshold" in weights and kind != "JumpReluAutoEncoder":
        weights["threshold"] = weights["threshold"].expand(len(weights["b_enc"]))
    k = None
    if architecture == "topk":  # in the state, or in earlier versions in the trainer's config alone
        k = int(state["k"]) if "k" in state else trainer.get("k")
        if k is None:
            raise DataError(f"{path} has no k, and {folder / 'config.json'} none either; fetch both again.")
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    cfg = _description(
        architecture,
        weights,
        path,
        k=k,
        hook_name=_hook_of_module(str(module), layer),
        model_name=trainer.get("lm_name"),
        context_size=buffer.get("ctx_len"),
        apply_b_dec_to_input=centred,
    )
    if kind == "AutoEncoder":  # as its own loader does
        saelens.fold_decoder_norm(weights)
    return cfg, weights


def _sparsify(folder: Path) -> Parts:
    """sae.safetensors and cfg.json of sparsify: the k largest of relu((x - b_dec) W_enc + b_enc).

    The folder is named after the hooked module; the run's config.json beside it names model and text.
    """
    cfg, path = saelens.read_object(folder / saelens.CFG_FILE), folder / "sae.safetensors"
    refused = {
        "activation": cfg.get("activation", "topk") != "topk",
        "transcode": cfg.get("transcode", False),
        "skip_connection": cfg.get("skip_connection", False),
    }
    for name, yes in refused.items():
        if yes:
            raise DataError(
                f"{folder / saelens.CFG_FILE}: {name}={cfg[name]} is not supported; choose a TopK SAE without."
            )
    state = saelens.read_weights(path)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    if missing := [name for name in names if name not in state]:
        raise DataError(f"{path} has no tensor {', '.join(missing)}; fetch it again.")
    weights = {ours: state[name].T if name == "encoder.weight" else state[name] for name, ours in names.items()}
    run = saelens.read_object(folder.parent / "config.json") if (folder.parent / "config.json").is_file() else {}
    return _description(
        "topk",
        weights,
        path,
        k=cfg.get("k"),
        hook_name=_hook_of_module(folder.resolve().name),
        model_name=run.get("model"),
        dataset_path=run.get("dataset"),
        context_size=run.get("ctx_len"),
    ), weights


def _hook_of_module(module: str, layer: Any = None) -> str | None:
    """TransformerLens' name of a module's output: `layers.2`, `model.layers.2.mlp`, `h.2`, `resid_post_layer_2`."""
    if isinstance(layer, int) and module.startswith("resid_post"):
        return f"blocks.{layer}.hook_resid_post"
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(\.mlp)?$", module)
    return None if found is None else f"blocks.{found[1]}.{'hook_mlp_out' if found[2] else 'hook_resid_post'}"


def _description(
    architecture: str,
    weights: dict[str, Tensor],
    path: Path,
    *,
    k: Any = None,
    apply_b_dec_to_input: bool = True,
    **metadata: Any,
) -> dict[str, Any]:
    """cfg.json of SAELens 6 for an SAE with these tensors; what `metadata` has None for is left out."""
    W_dec = weights.get("W_dec")
    if W_dec is None or W_dec.dim() != 2:
        raise DataError(f"{path} has no matrix W_dec; fetch it again.")
    return {
        "architecture": architecture,
        "d_in": W_dec.shape[1],
        "d_sae": W_dec.shape[0],
        "dtype": str(W_dec.dtype).removeprefix("torch."),
        "k": k,
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "metadata": {name: value for name, value in metadata.items() if value is not None},
    }


def _list(names: dict[str, Any]) -> str:
    return ", ".join(sorted(names))


LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
MATRICES = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
GATED = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "decoder_bias": "b_dec", "r_mag": "r_mag"}
DICTIONARIES: dict[str, tuple[dict[str, str], str, bool]] = {
    "AutoEncoder": (LINEAR | {"bias": "b_dec"}, "standard", True),
    "AutoEncoderNew": (LINEAR | {"decoder.bias": "b_dec"}, "standard", False),
    "AutoEncoderTopK": (LINEAR | {"b_dec": "b_dec"}, "topk", True),
    "BatchTopKSAE": (LINEAR | {"b_dec": "b_dec", "threshold": "threshold"}, "jumprelu", True),
    "MatryoshkaBatchTopKSAE": (MATRICES, "jumprelu", True),
    "GatedAutoEncoder": (GATED | {"gate_bias": "b_gate", "mag_bias": "b_mag"}, "gated", True),
    "JumpReluAutoEncoder": (MATRICES, "jumprelu", False),
}
"""dictionary_learning's classes: our names of their tensors, the architecture, whether b_dec is subtracted before."""

FORMATS: dict[str, Callable[[Path], Parts]] = {
    saelens.WEIGHTS_FILE: _saelens,
    "params.npz": _gemma_scope,
    "ae.pt": _dictionary_learning,
    "sae.safetensors": _sparsify,
}
"""Readers by the name of the file that holds the weights."""
FILES = (*FORMATS, saelens.CFG_FILE, "config.json")
"""All files that describe an SAE."""
