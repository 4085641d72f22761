"""The trained SAE as it is evaluated and exported: in SAELens's format, where that format can express it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_sweeps.architectures import saelens
from sae_sweeps.architectures.batch_topk import BatchTopK
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels.features import DenseFeatures, Features
from sae_sweeps.storage.run_folder import SAE_FILES

if TYPE_CHECKING:
    from sae_sweeps.architectures.base import SAE
    from sae_sweeps.architectures.group_layer import GroupLayer
    from sae_sweeps.config.run import RunConfig
    from sae_sweeps.storage.run_folder import RunFolder
    from sae_sweeps.training.step import Training


@dataclass
class GroupedSAE(ExportedSAE):
    """An SAE whose group layer changes the features at inference too, which SAELens's format cannot express."""

    groups: GroupLayer | None = None
    scale: float = 1.0
    """Factor of the activations in training; the group layer's features are in those units."""

    def features(self, x_BD: Tensor) -> Features:
        assert self.groups is not None
        f_BF = super().features(x_BD).dense() * self.scale
        with torch.no_grad():
            grouped = self.groups(DenseFeatures(f_BF), None, False)
        return DenseFeatures(grouped.dense() / self.scale)


@dataclass
class OwnSAE(ExportedSAE):
    """An SAE of an architecture that SAELens's format does not have."""

    sae: SAE | None = None
    scale: float = 1.0
    """Factor of the activations in training."""
    step: int = 0
    """The last step, at which the SAE encodes."""

    @torch.no_grad()
    def features(self, x_BD: Tensor) -> Features:
        assert self.sae is not None
        _, f = self.sae.encode(x_BD.to(self.dtype) * self.scale, self.step)
        return f if self.scale == 1 else DenseFeatures(f.dense() / self.scale)

    @torch.no_grad()
    def decode(self, f: Features | Tensor) -> Tensor:
        assert self.sae is not None
        dense = f if isinstance(f, Tensor) else f.dense()
        return self.sae.decode(DenseFeatures(dense * self.scale)) / self.scale

    def cfg(self) -> dict[str, Any]:
        return {"architecture": self.architecture, "d_in": self.d_in, "d_sae": self.d_sae, "metadata": self.metadata}


def live_sae(run: RunConfig, training: Training, norm_limit: float | None = None) -> ExportedSAE:
    """The SAE being trained, as it is at inference, in raw activation units, on the training's device.

    `norm_limit`: the norm beyond which `data.max_norm` leaves tokens out.
    """
    weights, settings = training.sae.export(training.scale)
    weights = {name: weight.float() for name, weight in weights.items()}
    described: dict[str, Any] = dict(
        architecture=training.sae.exports_as or run.architecture.name,
        weights=weights,
        hook_name="synthetic" if run.synthetic else hook_name(run.layer),
        model_name=run.model.path or run.model.name,
        metadata={
            "context_size": run.data.context,
            "prepend_bos": run.data.prepend_bos,
            "dataset_path": run.data.path or run.data.name,
            **({"model_revision": run.model.revision} if run.model.source == "hub" else {}),
            **({} if norm_limit is None else {"norm_limit": norm_limit}),
        },
        **settings,
    )
    if training.groups is not None and run.group_layer.active_at_inference():
        return GroupedSAE(**described, groups=deepcopy(training.groups).float(), scale=training.scale)
    if training.sae.exports_as is None:
        without_kernels = {id(training.sae.kernels): None}  # a module of Python, which cannot be copied
        sae = deepcopy(training.sae, without_kernels).float()
        return OwnSAE(**described, sae=sae, scale=training.scale, step=run.total_steps - 1)
    return ExportedSAE(**described)


@torch.no_grad()
def check_format(run: RunConfig, training: Training) -> None:
    """Raise ConfigError for an architecture from outside whose `exports_as` computes other features than it does.

    BatchTopK's own at inference, by a threshold, are meant to differ from those of a batch in training.
    """
    sae = training.sae
    if "architecture" not in run.code or sae.exports_as is None or isinstance(sae, BatchTopK):
        return
    name = f"architecture={run.architecture.name}"
    if sae.exports_as not in saelens.ARCHITECTURES:
        known = ", ".join(saelens.ARCHITECTURES)
        raise ConfigError(f"{name}: exports_as={sae.exports_as!r} is not one of {known}; leave it at None.")
    plain = deepcopy(sae, {id(sae.kernels): None}).float().cpu()
    x = torch.randn(64, plain.W_dec.shape[1], generator=torch.Generator().manual_seed(0))
    weights, settings = plain.export(1.0)
    exported = ExportedSAE(sae.exports_as, weights, **settings)
    found, expected = exported.encode(x), plain.encode(x, run.total_steps - 1)[1].dense()
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ConfigError(
            f"{name}: exports_as={sae.exports_as!r}, but SAELens's {sae.exports_as} computes other features than this "
            "architecture does; leave exports_as at None."
        )


def export(run: RunConfig, training: Training, folder: RunFolder, norm_limit: float | None = None) -> None:
    """Write `sae/`. Raises ConfigError where SAELens's format cannot hold what the SAE does."""
    if why := run.why_not_saelens():
        raise ConfigError(why)
    saelens.save(live_sae(run, training, norm_limit).to("cpu"), folder.sae)


def trained_sae(run: RunConfig, folder: RunFolder) -> ExportedSAE:
    """The SAE of a finished run, on the CPU: from `sae/` where it exists, else from the last checkpoint.

    Raises DamagedFile where it is not what training wrote.
    """
    trained = folder.read_trained(SAE_FILES)
    if run.why_not_saelens() is None:
        return saelens.load(folder.sae)
    from sae_sweeps.kernels.selection import PLAIN
    from sae_sweeps.training.checkpoint import load_checkpoint
    from sae_sweeps.training.step import Training

    training = Training(run, 1.0, torch.zeros(run.d_in), torch.device("cpu"), PLAIN)
    load_checkpoint(training, folder.checkpoint)
    norms = trained["provenance"].get("norms", {})
    return live_sae(run, training, norms.get("limit"))
