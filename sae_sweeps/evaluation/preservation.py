"""What is left of a language model's predictions when an SAE's output stands in for the activation it read."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation.batches import LanguageModel, is_plain
from sae_sweeps.saelens import ExportedSAE


class Mean:
    """A mean over tokens that are met batch by batch, summed in float64; nan before the first."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += values.double().sum().item()
        self.count += values.numel()

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


@torch.no_grad()
def preservation(
    saes: Mapping[str, ExportedSAE],
    lm: LanguageModel,
    layer: LayerConfig,
    batches: Iterable[Tensor],
    exclude_special_tokens: bool,
) -> dict[str, dict[str, float]]:
    """KL divergence and next-token cross-entropy (nats) of each SAE, by SAEBench's definitions.

    Each batch of tokens_SL is run up to the hook once, and from there as it is, with zeros at every position, and per
    SAE with its reconstruction (special tokens keep their activation under `exclude_special_tokens`). Means run over
    the tokens that are not special; for the cross-entropy these are the predicting ones.

        ce_loss_score = (CE_ablation - CE_sae) / (CE_ablation - CE)
        kl_div_score  = (KL_ablation - KL_sae) / KL_ablation,  KL(P || P_new) per token

    The KL divergence is computed from log-softmax, so a probability that underflows does not make it nan.
    At most two batches of logits are held at a time.
    """
    ce_without, ce_ablated, kl_ablated = Mean(), Mean(), Mean()
    ce_sae, kl_sae = {name: Mean() for name in saes}, {name: Mean() for name in saes}
    for tokens_SL in batches:
        tokens_SL = tokens_SL.to(lm.device)
        plain_SL = is_plain(tokens_SL, lm.special_ids)
        replaced_SL = plain_SL if exclude_special_tokens else torch.ones_like(plain_SL)

        x_SLD = lm.activations(tokens_SL, layer)

        def logits(given_SLD: Tensor, tokens_SL: Tensor = tokens_SL) -> Tensor:
            return lm.unembed(lm.resume(tokens_SL, layer, given_SLD))

        logits_SLV = logits(x_SLD)
        ce_without.add(next_token_loss(logits_SLV, tokens_SL)[plain_SL[:, :-1]])

        ablated_SLV = logits(torch.zeros_like(x_SLD))
        ce_ablated.add(next_token_loss(ablated_SLV, tokens_SL)[plain_SL[:, :-1]])
        kl_ablated.add(kl_divergence(logits_SLV, ablated_SLV)[plain_SL])
        del ablated_SLV

        for name, sae in saes.items():
            y_SLD = sae.decode(sae.encode(x_SLD)).to(x_SLD.dtype)
            sae_SLV = logits(torch.where(replaced_SL[..., None], y_SLD, x_SLD))
            ce_sae[name].add(next_token_loss(sae_SLV, tokens_SL)[plain_SL[:, :-1]])
            kl_sae[name].add(kl_divergence(logits_SLV, sae_SLV)[plain_SL])
            del sae_SLV

    ce, ce_abl, kl_abl = ce_without.value, ce_ablated.value, kl_ablated.value
    return {
        name: {
            "kl_div_score": ratio(kl_abl - kl_sae[name].value, kl_abl),
            "kl_div_with_ablation": kl_abl,
            "kl_div_with_sae": kl_sae[name].value,
            "ce_loss_score": ratio(ce_abl - ce_sae[name].value, ce_abl - ce),
            "ce_loss_with_ablation": ce_abl,
            "ce_loss_with_sae": ce_sae[name].value,
            "ce_loss_without_sae": ce,
        }
        for name in saes
    }


def next_token_loss(logits_SLV: Tensor, tokens_SL: Tensor) -> Tensor:
    """Cross-entropy of each next token [S, L-1], in nats; context by context, to copy no whole batch of logits."""
    targets_SL = tokens_SL[:, 1:].long()
    pairs = zip(logits_SLV, targets_SL, strict=True)
    return torch.stack([cross_entropy(single(logits_LV[:-1]), t_L, reduction="none") for logits_LV, t_L in pairs])


def kl_divergence(logits_SLV: Tensor, new_logits_SLV: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(new_logits)) per token [S, L], in nats; context by context."""
    pairs = zip(logits_SLV, new_logits_SLV, strict=True)
    return torch.stack([kl_of_context(logits_LV, new_LV) for logits_LV, new_LV in pairs])


def kl_of_context(logits_LV: Tensor, new_logits_LV: Tensor) -> Tensor:
    log_p_LV, log_q_LV = single(logits_LV).log_softmax(-1), single(new_logits_LV).log_softmax(-1)
    return (log_p_LV.exp() * (log_p_LV - log_q_LV)).sum(-1)


def single(values: Tensor) -> Tensor:
    """At least single precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def ratio(numerator: float, denominator: float) -> float:
    """nan instead of an exception where the denominator is zero."""
    return numerator / denominator if denominator else float("nan")
