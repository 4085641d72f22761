"""How separate the features are: geometry of the decoder, recovery of true features, labels, composition.

Its parts have a file each: `geometry`, `recovery` (synthetic activations), `labels` (text with roles), `composition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import EvalConfig, Evaluation
from sae_sweeps.evaluation.composition import composition
from sae_sweeps.evaluation.draws import evenly
from sae_sweeps.evaluation.geometry import decoder_geometry
from sae_sweeps.evaluation.labels import label_separation
from sae_sweeps.evaluation.recovery import recovery
from sae_sweeps.evaluation.result import Numbers
from sae_sweeps.evaluation.shared import Shared

METRICS = {
    r"nearest_neighbour_cosine(\w*)": ("lower", r"nn_cos\1"),
    "mean_abs_cosine": ("lower", "abs_cos"),
    r"recovery_(mmcs|matched|share)\w*": ("higher", None),
    r"recovery_(split|merged)\w*": ("lower", None),
    "nmi": ("higher", None),
    "silhouette": ("higher", None),
    r"feature_mi\w*": ("higher", None),
    "composition_rate": ("lower", None),
    "composition_rate_random": (None, None),
    "distinct_features": ("higher", None),
}

SPREAD = 32
"""Held-out tokens are taken evenly from this many times as many: a label may be rare."""
ENCODED_AT_ONCE = 1024
"""Tokens."""


def evaluate(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: EvalConfig) -> Iterator[tuple[str, Numbers]]:
    for name, sae in shared.each("separation", saes):
        W_dec = sae.weights["W_dec"]
        metrics = decoder_geometry(W_dec)
        if shared.world is not None:
            metrics |= recovery(W_dec, shared.world.features_FD, shared.world.kind, shared.world.parent_F)
        elif shared.data.has_roles():
            metrics |= labels(sae, shared, cfg)
        if cfg.composition:
            metrics |= composition(W_dec)
        yield name, Numbers(metrics)


@torch.no_grad()
def labels(sae: ExportedSAE, shared: Shared, cfg: EvalConfig) -> dict[str, float]:
    """nmi and silhouette on about `label_tokens` held-out tokens, of each role as many where the text has enough."""
    n_tokens = cfg.label_tokens
    pool = shared.tokens(n_tokens * SPREAD)
    roles = pool.role.unique().tolist()
    rows = [(pool.role == role).nonzero()[:, 0] for role in roles]
    batch = pool[torch.cat([found[evenly(n_tokens // len(roles), len(found))] for found in rows]).sort().values]
    f_BF = torch.cat([sae.encode(part.float().to(sae.device)) for part in batch.x.split(ENCODED_AT_ONCE)]).cpu()
    return label_separation(f_BF, batch.role, max_tokens=n_tokens, selection=cfg.selection)


EVALUATION = Evaluation(
    "separation", evaluate, METRICS, reads=("composition", "label_tokens", "selection"), needs_model=False,
    finite_only=False, version=2,
)  # fmt: skip
