"""Trained SAEs as SAELens keeps them on disk: a folder with `cfg.json` and `sae_weights.safetensors`.

`SAE.load_from_disk(folder)` of SAELens 6 reads what `save` writes, and `load` reads what SAELens 6 writes. An entry of
`ARCHITECTURES` lists an architecture's tensors and settings and passes them to the activation of its own file.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from sae_sweeps.architectures.gated import gated_relu
from sae_sweeps.architectures.jumprelu import jump_relu
from sae_sweeps.architectures.topk import top_k
from sae_sweeps.errors import ConfigError, DamagedFile, DataError, out_of_memory
from sae_sweeps.kernels.choose import choose
from sae_sweeps.kernels.features import DenseFeatures, Features
from sae_sweeps.storage.files import (
    fsync_folder,
    naming_full_disk,
    object_in,
    one_line,
    read_json,
    temporary_beside,
    write_bytes,
    write_json,
)
from sae_sweeps.storage.secrets import without_credentials

CFG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
FORMAT_VERSION = "6.0.0"  # SAELens reads older or absent version numbers by the rules of its earlier formats
HOOK_Z = "hook_z"
"""SAELens's `reshape_activations` for a hook whose heads lie one behind another, as here all do."""
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ExportedSAE:
    """A trained SAE without its training: f = activation((x - b_dec) W_enc + b_enc), x_hat = f W_dec + b_dec.

    A scale that normalised the activations in training is already folded into the weights.
    """

    architecture: str
    """A key of `ARCHITECTURES`."""
    weights: dict[str, Tensor]
    """W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in], and the architecture's further tensors."""
    k: int | None = None
    """Active features per token, for `topk`."""
    hook_name: str | None = None
    """Hook point of the activations, TransformerLens' name (blocks.3.hook_resid_post)."""
    model_name: str | None = None
    """The language model, by the name used by TransformerLens or the hub."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further metadata under SAELens's names: context_size, prepend_bos, dataset_path, ..."""
    apply_b_dec_to_input: bool = True
    """Whether b_dec is subtracted before encoding; always so in SAEs of this project."""

    @property
    def norm_limit(self) -> float | None:
        """The norm beyond which `data.max_norm` left activations out of the training; None where it left out none.

        Raises ConfigError for a cfg.json in which it is no norm.
        """
        limit = self.metadata.get("norm_limit")
        if limit is None or (isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < math.inf):
            return limit
        raise ConfigError(f"metadata.norm_limit={limit!r} of the SAE's cfg.json: must be a number above 0, or absent.")

    @property
    def d_in(self) -> int:
        return self.weights["W_dec"].shape[1]

    @property
    def d_sae(self) -> int:
        return self.weights["W_dec"].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["W_dec"].dtype

    @property
    def device(self) -> torch.device:
        return self.weights["W_dec"].device

    def features(self, x_BD: Tensor) -> Features:
        """Feature activations of x_BD [B, d_in], in the SAE's dtype and in the form that costs least."""
        x_BD = x_BD.to(self.dtype)
        if self.apply_b_dec_to_input:
            x_BD = x_BD - self.weights["b_dec"]
        return ARCHITECTURES[self.architecture].encode(self, x_BD)

    def encode(self, x_BD: Tensor) -> Tensor:
        """Dense feature activations [..., d_sae] of x [..., d_in]."""
        f_BF = self.features(x_BD.reshape(-1, self.d_in)).dense()
        return f_BF.reshape(*x_BD.shape[:-1], self.d_sae)

    def decode(self, f: Features | Tensor) -> Tensor:
        """Reconstruction x_hat_BD of feature activations in any form."""
        W_dec = self.weights["W_dec"]
        return (f @ W_dec if isinstance(f, Tensor) else f.decode(W_dec)) + self.weights["b_dec"]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "ExportedSAE":
        """A copy whose weights and modules are on `device` in `dtype` (None: as they are)."""
        modules: dict[str, Any] = {
            f.name: deepcopy(module).to(device=device, dtype=dtype)
            for f in fields(self)
            if isinstance(module := getattr(self, f.name), nn.Module)
        }
        weights = {name: w.to(device=device, dtype=dtype) for name, w in self.weights.items()}
        return replace(self, weights=weights, **modules)

    def nonfinite(self) -> list[str]:
        """Names of the weights that hold a number which is not finite."""
        return [name for name, w in self.weights.items() if not torch.isfinite(w).all()]

    def cfg(self) -> dict[str, Any]:
        """The content of `cfg.json`."""
        return {
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": "none",
            "reshape_activations": HOOK_Z if str(self.hook_name).endswith(f"attn.{HOOK_Z}") else "none",
            **ARCHITECTURES[self.architecture].constants,
            **{name: getattr(self, name) for name in ARCHITECTURES[self.architecture].settings},
            "architecture": self.architecture,
            "metadata": {
                "sae_lens_version": FORMAT_VERSION,
                "sae_lens_training_version": None,
                **self.metadata,
                "model_name": self.model_name,
                "hook_name": self.hook_name,
            },
        }


class Architecture(NamedTuple):
    """The part of the format that depends on the architecture."""

    encode: Callable[[ExportedSAE, Tensor], Features]
    """(sae, input with b_dec subtracted [B, d_in]) -> f [B, d_sae]."""
    shapes: dict[str, tuple[str, ...]]
    """Its tensors and their shapes in terms of d_in and d_sae."""
    settings: tuple[str, ...] = ()
    """Fields of ExportedSAE that `cfg.json` carries for it."""
    constants: dict[str, Any] = {}
    """Further entries that SAELens requires in `cfg.json`."""


def pre_activations(sae: ExportedSAE, x_BD: Tensor) -> Tensor:
    """z = x W_enc + b_enc [B, d_sae], free to be overwritten: a second array of that size costs more than the sum."""
    return (x_BD @ sae.weights["W_enc"]).add_(sae.weights["b_enc"])


def encode_topk(sae: ExportedSAE, x_BD: Tensor) -> Features:
    assert sae.k is not None
    z_BF = pre_activations(sae, x_BD)
    kernels = choose("auto", z_BF.device) if z_BF.device.type == "cpu" and z_BF.dtype == torch.float32 else None
    f = top_k(z_BF, sae.k, kernels)
    if kernels is not None and not f.values.isnan().any():  # of a token with NaN the kernel keeps nothing else
        return f
    return DenseFeatures(top_k(z_BF, sae.k).dense())


def encode_jumprelu(sae: ExportedSAE, x_BD: Tensor) -> Features:
    z_BF = pre_activations(sae, x_BD)
    return DenseFeatures(jump_relu(z_BF, sae.weights["threshold"], out=z_BF))


def encode_gated(sae: ExportedSAE, x_BD: Tensor) -> Features:
    w = sae.weights
    magnitude_BF = x_BD @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]
    return DenseFeatures(gated_relu(x_BD @ w["W_enc"] + w["b_gate"], magnitude_BF))


PER_FEATURE = ("d_sae",)
LINEAR = {"W_enc": ("d_in", "d_sae"), "b_enc": ("d_sae",), "W_dec": ("d_sae", "d_in"), "b_dec": ("d_in",)}
ARCHITECTURES = {
    "standard": Architecture(lambda sae, x_BD: DenseFeatures(pre_activations(sae, x_BD).relu_()), LINEAR),
    "jumprelu": Architecture(encode_jumprelu, LINEAR | {"threshold": PER_FEATURE}),
    "gated": Architecture(
        encode_gated,
        {name: shape for name, shape in LINEAR.items() if name != "b_enc"}
        | dict.fromkeys(("b_gate", "r_mag", "b_mag"), PER_FEATURE),
    ),
    "topk": Architecture(encode_topk, LINEAR, ("k",), {"rescale_acts_by_decoder_norm": False}),
}


def save(sae: ExportedSAE, folder: str | Path) -> None:
    """Write `folder` whole or not at all: a temporary folder beside it is filled, synced and renamed over an older one.

    Raises DiskFull; an older folder is then untouched.
    """
    folder = Path(folder)
    weights = {name: w.detach().to("cpu").contiguous() for name, w in sae.weights.items()}
    temporary, old = temporary_beside(folder), temporary_beside(folder)
    with naming_full_disk(folder):
        try:
            write_bytes(temporary / WEIGHTS_FILE, safetensors.torch.save(weights))
            write_json(temporary / CFG_FILE, sae.cfg())
            if folder.exists():  # a folder that is not empty cannot be replaced by one rename
                folder.rename(old)
            os.rename(temporary, folder)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        fsync_folder(folder.parent)


def load(folder: str | Path) -> ExportedSAE:
    """The SAE in a folder of SAELens 6, on the CPU, in the dtype that its `cfg.json` names.

    Raises DataError for what is missing or not supported, DamagedFile for a file that does not read back.
    """
    folder = Path(folder)
    return of_parts(read_object(folder / CFG_FILE), read_weights(folder / WEIGHTS_FILE), folder)


def of_parts(cfg: dict[str, Any], weights: dict[str, Tensor], folder: Path) -> ExportedSAE:
    """The SAE that a `cfg.json` and tensors under its names describe; `folder` is named in errors.

    Raises DataError for what is missing or not supported.
    """
    architecture = required(cfg, "architecture", folder)
    if architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise DataError(f"{folder / CFG_FILE}: architecture={architecture} is not supported; choose an SAE of {known}.")
    if DTYPES.get(required(cfg, "dtype", folder)) is None:
        raise DataError(f"{folder / CFG_FILE}: dtype={cfg['dtype']} is not known; write one of {', '.join(DTYPES)}.")
    # at inference SAELens does not scale for "expected_average_only_in" either: the scale is folded when saved
    if cfg.get("normalize_activations", "none") not in ("none", "expected_average_only_in"):
        raise DataError(
            f"{folder / CFG_FILE}: normalize_activations={cfg['normalize_activations']} is not supported: it scales "
            "each activation by itself, which no weights can; choose an SAE with none or expected_average_only_in."
        )
    if cfg.get("reshape_activations", "none") not in ("none", HOOK_Z):
        raise DataError(
            f"{folder / CFG_FILE}: reshape_activations={cfg['reshape_activations']} is not supported; "
            f"choose an SAE with none or {HOOK_Z}."
        )
    sizes = {name: required(cfg, name, folder) for name in ("d_in", "d_sae")}
    settings = {name: required(cfg, name, folder) for name in ARCHITECTURES[architecture].settings}
    if "k" in settings and not (isinstance(settings["k"], int) and 0 < settings["k"] <= sizes["d_sae"]):
        raise DataError(f"{folder / CFG_FILE}: k={settings['k']} must be a whole number from 1 to d_sae.")

    for name, symbols in ARCHITECTURES[architecture].shapes.items():
        shape = tuple(sizes[symbol] for symbol in symbols)
        if name not in weights:
            raise DataError(f"{folder / WEIGHTS_FILE} has no tensor {name}; export the SAE again.")
        if tuple(weights[name].shape) != shape:
            raise DataError(
                f"{folder / WEIGHTS_FILE}: {name} has shape {list(weights[name].shape)} where {CFG_FILE} has "
                f"{list(shape)}; export the SAE again."
            )
    weights = {name: weights[name].to(DTYPES[cfg["dtype"]]) for name in ARCHITECTURES[architecture].shapes}
    if "threshold" in weights:  # where libraries differ below zero, all take a ReLU as well
        weights["threshold"] = weights["threshold"].clamp(min=0)
    if cfg.get("rescale_acts_by_decoder_norm"):
        fold_decoder_norm(weights)

    # results quote it: a model's address may hold a password
    metadata = json.loads(without_credentials(json.dumps(object_in(cfg, "metadata", folder / CFG_FILE))))
    hook_name, model_name = metadata.pop("hook_name", None), metadata.pop("model_name", None)
    return ExportedSAE(
        architecture,
        weights,
        hook_name=hook_name,
        model_name=model_name,
        metadata=metadata,
        apply_b_dec_to_input=bool(cfg.get("apply_b_dec_to_input", True)),
        **settings,
    )


def required(cfg: dict[str, Any], key: str, folder: Path) -> Any:
    if cfg.get(key) is None:
        raise DataError(f"{folder / CFG_FILE} has no key {key}; export the SAE again with SAELens 6 or newer.")
    return cfg[key]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises DataError where it is missing, DamagedFile where it is none."""
    try:
        content = read_json(path)
    except DamagedFile:
        raise DamagedFile(f"{path} is damaged (not JSON); export the SAE again.") from None
    if not isinstance(content, dict):
        raise DamagedFile(f"{path} is damaged (not a JSON object); export the SAE again.")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. Raises DataError when it is missing, DamagedFile when it is not whole."""
    if not path.is_file():
        raise DataError(f"{path} is missing; check the path.")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise DamagedFile(f"{path} is damaged ({one_line(error)}); export the SAE again.") from None


def fold_decoder_norm(weights: dict[str, Tensor]) -> None:
    """Make decoder rows unit-norm; f then equals SAELens's f under `rescale_acts_by_decoder_norm`.

    There z_j is multiplied by |d_j| before the top k are chosen and f_j divided by |d_j| before decoding.
    """
    norm_F = weights["W_dec"].norm(dim=1)
    norm_F = torch.where(norm_F > 0, norm_F, 1)
    weights["W_enc"] = weights["W_enc"] * norm_F
    weights["b_enc"] = weights["b_enc"] * norm_F
    weights["W_dec"] = weights["W_dec"] / norm_F[:, None]
