"""How sharp features are: the share of a feature's activation that its strongest tokens hold, mean over live ones."""

from dataclasses import dataclass

from sae_sweeps.config.evaluations import Evaluation
from sae_sweeps.evaluation.result import Numbers


@dataclass
class SharpnessConfig:
    strongest: float = 0.1
    """Share of all tokens that counts as the strongest."""
    tokens: int = 2048
    """Held-out tokens."""


def evaluate(saes, shared, config):
    x_BD = shared.tokens(config.tokens).x.float()
    for name, sae in shared.each("sharpness", saes):
        f_BF = sae.encode(x_BD.to(sae.device)).sort(dim=0, descending=True).values
        total_F = f_BF.sum(0)
        share_F = f_BF[: int(config.strongest * len(f_BF))].sum(0) / total_F
        yield name, Numbers({"sharpness": float(share_F[total_F > 0].mean())})


EVALUATION = Evaluation(
    "sharpness", evaluate, {"sharpness": ("higher", None)}, reads=(), config=SharpnessConfig, needs_model=False
)
