"""Groups of features: a layer between activation and decoder.

The energy of group g on token t is E_tg = || f_t restricted to g ||_2. The options act on f in this order:

    competition   f_g <- f_g * G * softmax(E / T)_g
    mask          f_g <- 0 but for the groups of largest E
    dropout       f_g <- 0 with probability p, for each token and group by itself
    residual      f_g <- f_g + r * mean of the other groups, feature by feature at the same place in its group

E is computed from the layer's input. Without an option f is unchanged and the layer only defines the groups.
Competition, mask and dropout keep f as sparse as before; the residual makes it dense: a feature is above 0 wherever one
at its place in any group is, so L0 grows up to G-fold, also beyond a TopK's k. Introduced with
the structured information bottleneck: docs/methods.md, "Penalties".
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from sae_sweeps.errors import ConfigError
from sae_sweeps.fields import AtLeastOne, BelowOne, InnerShare, NotNegative, Positive, at_least, one_of
from sae_sweeps.kernels.choose import asynchronous
from sae_sweeps.kernels.counts import counts
from sae_sweeps.kernels.features import DenseFeatures, Features, TopKFeatures
from sae_sweeps.kernels.group_energy import group_norms, scaled_groups
from sae_sweeps.kernels.grouping import balanced_assignment, centres, resized
from sae_sweeps.kernels.mutual_information import mutual_information, standardized

if TYPE_CHECKING:
    from sae_sweeps.architectures.context import Context

OPTIONS = ("competition", "mask", "dropout", "residual")
"""Options that change f, in the order of their application."""

WHOLE_MI_UP_TO = 64
TOP_PAIRS = 32
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass
class GroupLayerConfig:
    name: str
    """none, or groups."""
    group_size: int
    """Features per group at the start, consecutive ones; the last group may be smaller."""
    window: Annotated[int, at_least(2, "a correlation needs at least 2 tokens; give 32, for example.")]
    """W, the last tokens over which the energies' correlation is taken."""
    variance_floor: NotNegative[float]
    """Groups whose energy varies less share no information: variance over the mean square of all energies."""
    competition: bool
    """Groups compete for each token: f_g <- f_g * G * softmax(E / temperature)_g."""
    temperature: Positive[float]
    """T of that softmax, in the units of the activations that the SAE is trained on."""
    competition_train_only: bool
    """true: not at inference."""
    mask: NotNegative[float]
    """Groups kept per token, those of largest energy: a share of the groups below 1, else a number; 0 keeps all."""
    mask_train_only: bool
    """true: not at inference."""
    dropout: BelowOne
    """Probability that a group is dropped from a token's features; for example 0.1."""
    dropout_train_only: bool
    """true: groups that are kept are divided by 1 - dropout in training, and inference is without dropout; false: they
    are not divided, and f is multiplied by 1 - dropout at inference."""
    residual: NotNegative[float]
    """r in f_g <- f_g + r * mean of the other groups; 0 turns it off."""
    residual_train_only: bool
    """true: not at inference."""
    reversal: NotNegative[float]
    """Weight of gradient reversal between groups: a linear head learns to predict each group's energy from the
    others', and the encoder to prevent it; 0 turns it off."""
    adapt: Annotated[str, one_of("none", "similarity", "mi")]
    """none; similarity: groups keep their sizes and take the features whose decoder rows are most similar to theirs;
    mi: of groups that share much information, the smaller gives features to the larger."""
    adapt_every: AtLeastOne[int]
    """Steps from one adaptation of the groups to the next."""
    adapt_pairs: AtLeastOne[int]
    """Pairs of groups resized at once."""
    adapt_share: InnerShare
    """Share of the smaller group's features that it gives."""
    max_size: int
    """Features in a group at most, when resized."""

    def check(self, d_sae: int) -> None:
        """Raise ConfigError for a value out of range."""
        if self.name == "none":
            return
        if not 1 <= self.group_size < d_sae:
            raise ConfigError(
                f"group_layer.group_size={self.group_size}: must be at least 1 and below d_sae={d_sae}, "
                "so that there are two groups."
            )
        n_groups = self.n_groups(d_sae)
        if self.mask >= 1 and (self.mask != int(self.mask) or self.mask > n_groups):
            raise ConfigError(
                f"group_layer.mask={self.mask:g}: must be a share below 1 or a whole number of the {n_groups} groups."
            )
        if self.adapt == "mi" and self.max_size <= self.group_size:
            raise ConfigError(
                f"group_layer.max_size={self.max_size}: must be above group_size={self.group_size} for groups to grow."
            )

    def unused_keys(self) -> dict[str, str]:
        """Keys without effect given the values of the others, each with the reason."""
        if self.name == "none":
            return {f.name: "group_layer=none has no groups" for f in fields(self) if f.name != "name"}
        out = {
            f"{option}_train_only": f"group_layer.{option} is off" for option in OPTIONS if not getattr(self, option)
        }
        if not self.competition:
            out["temperature"] = "group_layer.competition is off"
        if self.adapt == "none":
            out["adapt_every"] = "group_layer.adapt=none changes no groups"
        if self.adapt != "mi":
            out |= dict.fromkeys(("adapt_pairs", "adapt_share", "max_size"), "only group_layer.adapt=mi uses it")
        return out

    def n_groups(self, d_sae: int) -> int:
        return -(-d_sae // self.group_size)

    def active_at_inference(self) -> list[str]:
        """The options that change f at inference too."""
        if self.name == "none":
            return []
        return [o for o in OPTIONS if getattr(self, o) and not getattr(self, f"{o}_train_only")]


class GroupLayer(nn.Module):
    """Groups of features. State: the group of each feature, and the energies of the last W tokens."""

    def __init__(self, cfg: GroupLayerConfig, d_in: int, d_sae: int, total_steps: int, generator: torch.Generator):
        super().__init__()
        self.cfg = cfg
        self.total_steps = total_steps
        self.n_groups = cfg.n_groups(d_sae)
        self.register_buffer("group_of_F", torch.arange(d_sae) // cfg.group_size)
        self.register_buffer("place_of_F", torch.arange(d_sae) % cfg.group_size)
        self.register_buffer("window_WG", torch.zeros(cfg.window, self.n_groups))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self.group_of_F: Tensor
        """Group of each feature [d_sae]."""
        self.place_of_F: Tensor
        """Number of each feature within its group, in the order of the features [d_sae]."""
        self.window_WG: Tensor
        """Energies of the last tokens of earlier steps, the newest last."""
        self.filled: Tensor
        """How many rows of the window are energies, the last ones."""
        self.largest_size = cfg.max_size if cfg.adapt == "mi" else cfg.group_size
        """Features in a group at most."""
        if cfg.reversal:
            self.head = nn.Parameter(torch.zeros(self.n_groups, self.n_groups))

    def sizes(self) -> Tensor:
        """Features in each group [G], int64."""
        return counts(self.group_of_F, self.n_groups)

    def energies(self, f: Features) -> Tensor:
        """E_tg = || f_t restricted to g ||_2 [B, G]; its gradient is 0 where it is 0."""
        if not isinstance(f, TopKFeatures):
            return group_norms(f.dense(), self.group_of_F, self.n_groups)
        squares = f.values.new_zeros(len(f.values), self.n_groups)
        squares = squares.scatter_add(1, self.group_of_F[f.indices], f.values.square())
        fires = squares > 0
        return torch.where(fires, squares, 1).sqrt() * fires

    def forward(self, f: Features, generator: torch.Generator | None, training: bool) -> Features:
        """f [B, d_sae] with the options applied; f itself where none is on. `generator` draws the dropout."""
        gates = self.gates(f, generator, training)
        if gates:
            f = self._scaled(f, torch.stack(gates).prod(0) if len(gates) > 1 else gates[0])
        return self._with_residual(f) if self._acts("residual", training) else f

    def gates(self, f: Features, generator: torch.Generator | None, training: bool) -> list[Tensor]:
        """Factors on the groups, [B, G] for each option that is on."""
        out: list[Tensor] = []
        if not any(self._acts(option, training) for option in ("competition", "mask", "dropout")):
            return out
        E_BG = self.energies(f)
        if self._acts("competition", training):
            out.append(self.n_groups * (E_BG / self.cfg.temperature).softmax(1))
        if self._acts("mask", training):
            out.append(torch.zeros_like(E_BG).scatter(1, E_BG.topk(self.n_kept(), dim=1).indices, 1.0))
        if self._acts("dropout", training):
            p = self.cfg.dropout
            if training:
                draw = torch.rand(E_BG.shape, generator=generator, device=E_BG.device)
                kept = (draw >= p).to(E_BG.dtype)
                out.append(kept / (1 - p) if self.cfg.dropout_train_only else kept)
            else:
                out.append(torch.full_like(E_BG, 1 - p))
        return out

    def n_kept(self) -> int:
        """Groups that the mask keeps per token."""
        mask = self.cfg.mask
        return int(mask) if mask >= 1 else max(1, round(mask * self.n_groups))

    def _acts(self, option: str, training: bool) -> bool:
        return bool(getattr(self.cfg, option)) and (training or not getattr(self.cfg, f"{option}_train_only"))

    def _scaled(self, f: Features, gate_BG: Tensor) -> Features:
        if isinstance(f, TopKFeatures):
            return replace(f, values=f.values * gate_BG.gather(1, self.group_of_F[f.indices]))
        return DenseFeatures(scaled_groups(f.dense(), gate_BG, self.group_of_F))

    def _with_residual(self, f: Features) -> DenseFeatures:
        """f_g + r * mean of the other groups, where a group without a feature at that place counts as 0."""
        f_BF = f.dense()
        sums = f_BF.new_zeros(len(f_BF), self.largest_size).index_add(1, self.place_of_F, f_BF)
        others = sums.index_select(1, self.place_of_F) - f_BF
        return DenseFeatures(f_BF + self.cfg.residual / (self.n_groups - 1) * others)

    def recent(self, E_BG: Tensor) -> Tensor:
        """The last W rows of [energies of earlier steps, this batch's] [at most W, G]; fewer at the start of a run.

        Rows of a batch keep its order: under contiguous_windows one window after the other, each in token order. Only
        this batch's rows carry a gradient.
        """
        missing = self.cfg.window - len(E_BG)
        if missing <= 0 or not (missing := min(missing, int(self.filled))):
            return E_BG[-self.cfg.window :]
        return torch.cat([self.window_WG[-missing:].to(E_BG.dtype), E_BG])

    def mutual_information(self, E_NG: Tensor) -> Tensor:
        """MI of each pair of groups over N tokens, in nats [G, G], 0 on the diagonal."""
        return mutual_information(E_NG, self.cfg.variance_floor)

    def recent_information(self, E_BG: Tensor) -> Tensor:
        """`mutual_information` of `recent`; where reading how full the window is would wait for a GPU, over all rows of
        the window with those that hold no energies left out."""
        missing = self.cfg.window - len(E_BG)
        if missing <= 0 or not asynchronous(E_BG):
            return self.mutual_information(self.recent(E_BG))
        ages = torch.arange(missing + len(E_BG), 0, -1, device=E_BG.device) - len(E_BG)
        E_WG = torch.cat([self.window_WG[-missing:].to(E_BG.dtype), E_BG])
        return mutual_information(E_WG, self.cfg.variance_floor, ages <= self.filled)

    def extra_losses(self, ctx: Context) -> dict[str, tuple[Tensor, float]]:
        """Terms beside the reconstruction: name -> (value, weight).

        reversal: mean squared error of the head on energies standardised over the batch, E_g from the other groups'.
        The head is trained to reduce this error; the encoder, which receives the reversed gradient, to increase it.
        """
        if not self.cfg.reversal:
            return {}
        E_BG: Tensor = _Reversed.apply(self.energies(ctx.feature_acts))
        with torch.autocast(E_BG.device.type, enabled=False):
            standard = standardized(E_BG, self.cfg.variance_floor) * len(E_BG) ** 0.5
            weights = self.head - self.head.diag().diag()
            value = (standard @ weights - standard).square().mean()
        return {"reversal": (value, self.cfg.reversal)}

    @torch.no_grad()
    def observe(self, ctx: Context) -> None:
        """Put the batch's energies into the window. Called after the optimizer's step."""
        new = self.energies(_last_rows(ctx.feature_acts, self.cfg.window))
        kept = self.cfg.window - len(new)
        if kept:
            self.window_WG[:kept] = self.window_WG[-kept:].clone()
        self.window_WG[kept:] = new
        self.filled.add_(len(new)).clamp_(max=self.cfg.window)

    @torch.no_grad()
    def adapt(self, ctx: Context) -> list[dict[str, Any]]:
        """Change the groups, every `adapt_every` steps but the last; returns a JSON-able record of the change.

        similarity: one round of k-means on the decoder rows (cosine) at constant group sizes. mi: `resized`. Groups
        that changed start with an empty window: stored energies are those of other groups. All features
        that moved are recorded with their new group, so that start and records give the groups at any step.
        """
        cfg, done = self.cfg, ctx.step + 1
        if cfg.adapt == "none" or done % cfg.adapt_every or done == self.total_steps:
            return []
        before, W_dec = self.sizes(), ctx.sae.W_dec
        event: dict[str, Any] = {"kind": cfg.adapt}
        if cfg.adapt == "similarity":
            centre_GD = centres(W_dec, self.group_of_F, self.n_groups)
            group_of_F = balanced_assignment(W_dec @ centre_GD.T, before)
        else:
            mi_GG = self.mutual_information(self.window_WG[cfg.window - int(self.filled) :])
            group_of_F, pairs = resized(self.group_of_F, mi_GG, W_dec, cfg.adapt_pairs, cfg.adapt_share, cfg.max_size)
            event["pairs"] = [[giver, taker, round(mi, 6)] for giver, taker, mi in pairs]
        moved = (group_of_F != self.group_of_F).nonzero().squeeze(1)
        if len(moved):
            self.regroup(group_of_F)
        return [
            event
            | {"moved": len(moved), "features": moved.tolist(), "to": group_of_F[moved].tolist()}
            | {"sizes_before": before.tolist(), "sizes_after": self.sizes().tolist()}
        ]

    @torch.no_grad()
    def regroup(self, group_of_F: Tensor) -> None:
        """Make these the groups [d_sae], and discard the energies of the former ones."""
        self.group_of_F.copy_(group_of_F)
        order, sizes = group_of_F.argsort(stable=True), self.sizes()
        start_of_group = sizes.cumsum(0) - sizes
        self.place_of_F[order] = torch.arange(len(order), device=order.device) - start_of_group[group_of_F[order]]
        self.largest_size = max(self.largest_size, int(sizes.max()))
        self.filled.zero_()

    @torch.no_grad()
    def monitor(self, ctx: Context) -> dict[str, Any]:
        """`groups`: sizes, energies, and MI in nats over the last W tokens (all pairs up to 64 groups)."""
        E_BG = self.energies(ctx.feature_acts)
        recent = self.recent(E_BG)
        mi_GG = self.mutual_information(recent)
        g, h = torch.triu_indices(self.n_groups, self.n_groups, 1, device=mi_GG.device)
        pairs = mi_GG[g, h]
        top = pairs.topk(min(TOP_PAIRS, len(pairs)))
        at = ((len(pairs) - 1) * torch.tensor(QUANTILES)).round().long().to(pairs.device)
        record = {
            "sizes": self.sizes().tolist(),
            "mean_energy": _rounded(E_BG.mean(0)),
            "active_share": _rounded((E_BG > 0).float().mean(0)),
            "mi_tokens": len(recent),
            "mi_mean": round(float(pairs.mean()), 6),
            "mi_quantiles": dict(zip(map(str, QUANTILES), _rounded(pairs.sort().values[at]), strict=True)),
            "mi_top_pairs": [
                [int(g[i]), int(h[i]), round(float(mi), 6)] for i, mi in zip(top.indices, top.values, strict=True)
            ],
        }
        if self.n_groups <= WHOLE_MI_UP_TO:
            record["mi"] = [_rounded(row) for row in mi_GG]
        return {"groups": record}


class _Reversed(torch.autograd.Function):
    """The identity, with the sign of the gradient reversed. Ganin and Lempitsky 2015 (arXiv 1409.7495)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return -grads[0]


def _last_rows(f: Features, n: int) -> Features:
    if isinstance(f, TopKFeatures):
        return TopKFeatures(f.values[-n:], f.indices[-n:], f.d_sae)
    return DenseFeatures(f.dense()[-n:])


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


CONFIG = GroupLayerConfig
COMPONENT = GroupLayer
