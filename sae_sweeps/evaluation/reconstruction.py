"""How well, how sparsely and with which features an SAE reconstructs activations."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import norms_of
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.evaluation.preservation import Mean, ratio
from sae_sweeps.evaluation.sums import count_firing
from sae_sweeps.kernels.features import Features


class ReconstructionStats:
    """Sums over batches of n tokens: x the activations, f the features, y the reconstruction, in float64.

    SAEBench's definitions, which differ from their names in places:
        l2_ratio                      mean of |y| / |x| (divisor 1 where |x| < 1e-4)
        relative_reconstruction_bias  mean over batches of mean|y|^2 / mean(x . y) (arXiv:2404.16014, equation 10)
        l0, l1                        mean of count(f != 0) and of sum(f)
        mse                           |x - y|^2 / n averaged over tokens: falls as batches grow
        cossim                        mean of the cosine of x and y; nan once a y is zero
        explained_variance_legacy     mean of 1 - |x - y|^2 / |x - mean of the batch|^2, a ratio per token
        explained_variance            1 - R / (S - (S / d_in)^2), S and R the means over batches of mean|x|^2 and
                                      mean|x - y|^2: the square of the mean square in place of the squared mean
    Ours:
        fvu                           sum|x - y|^2 / sum|x - m|^2, m the mean activation over all tokens
        explained_variance_correct    1 - fvu
        fvu_per_token                 mean over tokens of each one's own |x - y|^2 / |x - m|^2, in which a token counts
                                      the same whatever its norm; m as `mean_D`
        mse_per_token                 mean over tokens of |x - y|^2, summed over d_in
    A batch without tokens counts for nothing.
    """

    def __init__(self, sae: ExportedSAE, mean_D: Tensor):
        self.d_in, self.mean_D = sae.d_in, mean_D
        self.token_means = {
            name: Mean()
            for name in ("l2_norm_in", "l2_norm_out", "l2_ratio", "l0", "l1", "mse", "cossim", "mse_per_token")
            + ("explained_variance_legacy", "fvu_per_token")
        }
        self.bias, self.mean_square, self.mean_error = Mean(), Mean(), Mean()  # one value per batch
        self.sum_x_D = torch.zeros(self.d_in, dtype=torch.float64, device=sae.device)
        self.sum_square = 0.0
        self.n_batches = 0
        self.n_left_out = 0
        """Tokens beyond the limit of the SAE's training."""

    def add(self, x_nD: Tensor, f: Features, y_nD: Tensor) -> None:
        self.n_batches += 1
        if not len(x_nD):
            return
        x_nD, y_nD = x_nD.double(), y_nD.double()
        square_n, error_n = x_nD.pow(2).sum(-1), (x_nD - y_nD).pow(2).sum(-1)
        norm_in_n, norm_out_n = square_n.sqrt(), y_nD.norm(dim=-1)
        dot_n = (x_nD * y_nD).sum(-1)
        variance_n = (x_nD - x_nD.mean(0)).pow(2).sum(-1)
        for name, values_n in {
            "l2_norm_in": norm_in_n,
            "l2_norm_out": norm_out_n,
            "l2_ratio": norm_out_n / torch.where(norm_in_n < 1e-4, 1, norm_in_n),
            "l0": (f.values != 0).sum(-1),
            "l1": f.values.sum(-1, dtype=torch.float64),
            "mse": error_n / len(error_n),
            "cossim": dot_n / (norm_in_n * norm_out_n),
            "explained_variance_legacy": 1 - error_n / variance_n,
            "mse_per_token": error_n,
        }.items():
            self.token_means[name].add(values_n)
        about_n = (x_nD - self.mean_D).pow(2).sum(-1)
        self.token_means["fvu_per_token"].add((error_n / about_n)[about_n > 0])  # at the mean there is none
        self.bias.add(norm_out_n.pow(2).mean() / dot_n.mean())
        self.mean_square.add(square_n.mean())
        self.mean_error.add(error_n.mean())
        self.sum_x_D += x_nD.sum(0)
        self.sum_square += square_n.sum().item()

    def metrics(self) -> dict[str, float]:
        metrics = {name: mean.value for name, mean in self.token_means.items()}
        n_tokens = self.token_means["mse_per_token"].count
        variance = ratio(self.sum_square - ratio(self.sum_x_D.pow(2).sum().item(), n_tokens), n_tokens)
        square, error = self.mean_square.value, self.mean_error.value
        fvu = ratio(metrics["mse_per_token"], variance)
        return metrics | {
            "relative_reconstruction_bias": self.bias.value,
            "explained_variance": 1 - ratio(error, square - (square / self.d_in) ** 2),
            "fvu": fvu,
            "explained_variance_correct": 1 - fvu,
        }


def mean_within(parts: Iterable[Tensor], norm_limit: float | None = None) -> Tensor:
    """The mean of the rows of all parts x_nD whose norm is at most the limit [d_in], float64; nan without any."""
    sums, n = [], 0
    for x_nD in parts:
        kept_nD = x_nD if norm_limit is None else x_nD[norms_of(x_nD) <= norm_limit]
        sums.append(kept_nD.double().sum(0))
        n += len(kept_nD)
    return torch.stack(sums).sum(0) / n


class FeatureStats:
    """How often each feature fires (f > 0)."""

    def __init__(self, sae: ExportedSAE):
        self.tokens_F = torch.zeros(sae.d_sae, dtype=torch.float64, device=sae.device)
        self.contexts_F = torch.zeros_like(self.tokens_F)
        self.n_tokens = 0
        self.has_contexts = False

    def add(self, f: Features, length_S: Tensor | None) -> None:
        """length_S: how many of the tokens each context has, one after another; None where there are no contexts."""
        n, fires_SF = len(f.values), count_firing(f, length_S)
        self.n_tokens += n
        self.tokens_F += fires_SF.sum(0)
        if length_S is not None and n:
            self.has_contexts = True
            self.contexts_F += (fires_SF > 0).sum(0)

    def columns(self) -> dict[str, Tensor]:
        """By SAEBench's names, each [d_sae] in float64 on the CPU.

        feature_density: share of the tokens; nan without tokens.
        consistent_activation_heuristic: tokens per context in which the feature fires at all; nan for a dead feature,
        absent without contexts.
        """
        columns = {"feature_density": (self.tokens_F / self.n_tokens).cpu()}
        if self.has_contexts:
            columns["consistent_activation_heuristic"] = (self.tokens_F / self.contexts_F).cpu()
        return columns


@torch.no_grad()
def weight_stats(sae: ExportedSAE) -> dict[str, Tensor]:
    """SAEBench's statistics of the weights, each [d_sae] in float32 on the CPU, by SAEBench's names."""
    W_enc_FD, W_dec_FD = sae.weights["W_enc"].T.float(), sae.weights["W_dec"].float()
    norm_enc_F, norm_dec_F = W_enc_FD.norm(dim=1), W_dec_FD.norm(dim=1)
    stats = {
        "encoder_bias": sae.weights.get("b_enc", torch.zeros_like(norm_enc_F)).float(),
        "encoder_norm": norm_enc_F,
        "encoder_decoder_cosine_sim": (W_enc_FD * W_dec_FD).sum(1) / (norm_enc_F * norm_dec_F),
        "max_decoder_cosine_sim": max_cosine(W_dec_FD),
        "max_encoder_cosine_sim": max_cosine(W_enc_FD),
    }
    return {name: stat_F.cpu() for name, stat_F in stats.items()}


def max_cosine(vectors_FD: Tensor, tile: int = 512) -> Tensor:
    """Largest cosine of each vector with any other [F], in tiles of `tile` rows; 0 with a zero vector, nan if F = 1."""
    unit_FD = torch.nn.functional.normalize(vectors_FD, dim=1)
    if len(unit_FD) == 1:
        return unit_FD.new_full((1,), float("nan"))
    maxima = []
    for start in range(0, len(unit_FD), tile):
        cosine_TF = unit_FD[start : start + tile] @ unit_FD.T
        cosine_TF.diagonal(start).fill_(-torch.inf)  # not with itself
        maxima.append(cosine_TF.amax(1))
    return torch.cat(maxima)


def density_metrics(density_F: Tensor) -> dict[str, float]:
    """SAEBench's summary of the feature densities, and the share of features that never fire; nan without tokens."""
    total = density_F.sum().item()
    metrics = {"frac_alive": share_over(density_F, 0)}
    for percent in (1, 10):
        metrics[f"freq_over_{percent}_percent"] = share_over(density_F, percent / 100)
        mass = density_F[density_F > percent / 100].sum().item()
        metrics[f"normalized_freq_over_{percent}_percent"] = mass / total if total else 0.0
    return metrics | {"dead_features": 1 - metrics["frac_alive"]}


def share_over(density_F: Tensor, threshold: float) -> float:
    return torch.where(density_F.isnan(), density_F, (density_F > threshold).double()).mean().item()
