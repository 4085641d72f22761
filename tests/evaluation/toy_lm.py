"""A causal language model of a few lines, and random SAEs."""

import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.schema import LayerConfig

BOS, PAD, VOCABULARY, D_IN, D_SAE = 0, 1, 11, 6, 9


class ToyLM:
    """Activation of a token: its embedding and half the previous activation. Logits: a tanh layer and a read-out."""

    device, dtype, n_layers = torch.device("cpu"), torch.float64, 1
    special_ids = frozenset({BOS, PAD})

    def __init__(self, sharpness: float = 1.0):
        generator = torch.Generator().manual_seed(0)
        self.embedding_VD = torch.randn(VOCABULARY, D_IN, generator=generator, dtype=torch.float64)
        self.readout_DV = sharpness * torch.randn(D_IN, VOCABULARY, generator=generator, dtype=torch.float64)
        self.n_forwards = 0

    def activations(self, tokens_SL: Tensor, layer: LayerConfig) -> Tensor:
        x_SLD = self.embedding_VD[tokens_SL]
        for position in range(1, tokens_SL.shape[1]):
            x_SLD[:, position] = x_SLD[:, position] + x_SLD[:, position - 1] / 2
        return x_SLD

    def resume(self, tokens_SL: Tensor, layer: LayerConfig, x_SLD: Tensor) -> Tensor:
        self.n_forwards += 1
        return x_SLD.tanh()

    def unembed(self, hidden: Tensor) -> Tensor:
        return hidden @ self.readout_DV

    def logits(self, tokens_SL: Tensor, layer=None, replace=None) -> Tensor:
        x_SLD = self.activations(tokens_SL, LayerConfig())
        return self.unembed(self.resume(tokens_SL, layer, replace(x_SLD) if replace else x_SLD))


def toy_sae(seed: int = 0, architecture: str = "topk", d_in: int = D_IN, d_sae: int = D_SAE) -> ExportedSAE:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_dec = torch.nn.functional.normalize(normal(d_sae, d_in), dim=1)
    weights = {
        "W_enc": W_dec.T.contiguous() + 0.1 * normal(d_in, d_sae),
        "b_enc": 0.1 * normal(d_sae),
        "W_dec": W_dec,
        "b_dec": normal(d_in),
    }
    return ExportedSAE(architecture, weights, k=3 if architecture == "topk" else None)


def toy_tokens(n_contexts: int, context: int = 8, seed: int = 0) -> Tensor:
    """Rows that start with BOS, with some special tokens in between."""
    generator = torch.Generator().manual_seed(seed)
    tokens_NL = torch.randint(0, VOCABULARY, (n_contexts, context), generator=generator)
    tokens_NL[:, 0] = BOS
    return tokens_NL
