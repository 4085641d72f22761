"""A language model's loss and predictions when an SAE's output replaces the activation."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import norms_of
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import contexts_at_once
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation.batches import LanguageModel, is_plain


class Mean:
    """A running mean over tokens, summed in float64; nan before the first."""

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
    limits: Mapping[str, float | None],
) -> dict[str, dict[str, float]]:
    """KL divergence and next-token cross-entropy (nats) of each SAE, by SAEBench's definitions.

    Each batch of tokens_SL is run up to the hook once, and from there as it is, with zeros at every position, and per
    SAE with its reconstruction (special tokens keep their activation under `exclude_special_tokens`, tokens whose norm
    is beyond the SAE's limit in any case). Means run over the tokens that are not special, the same for every SAE; for
    the cross-entropy these are the predicting ones.

        ce_loss_score = (CE_ablation - CE_sae) / (CE_ablation - CE)
        kl_div_score  = (KL_ablation - KL_sae) / KL_ablation,  KL(P || P_new) per token

    The KL divergence is computed from log-softmax, so a probability that underflows does not make it nan.
    At most two blocks of logits are held at a time, one of them as log-probabilities: of a batch, or on a GPU of as
    many of its contexts as LOGITS_BYTES hold.
    """
    ce_without, ce_ablated, kl_ablated = Mean(), Mean(), Mean()
    ce_sae, kl_sae = {name: Mean() for name in saes}, {name: Mean() for name in saes}
    for tokens_SL in batches:
        tokens_SL = tokens_SL.to(lm.device)
        plain_SL = is_plain(tokens_SL, lm.special_ids)
        replaced_SL = plain_SL if exclude_special_tokens else torch.ones_like(plain_SL)

        x_SLD = lm.activations(tokens_SL, layer)
        hidden_SLH = lm.resume(tokens_SL, layer, x_SLD)
        replaced: dict[str | None, Tensor] = {None: lm.resume(tokens_SL, layer, torch.zeros_like(x_SLD))}
        for name, sae in saes.items():
            y_SLD = sae.decode(sae.features(x_SLD.flatten(0, 1))).view_as(x_SLD).to(x_SLD.dtype)
            limit = limits[name]
            given_SL = replaced_SL if limit is None else replaced_SL & (norms_of(x_SLD) <= limit)
            replaced[name] = lm.resume(tokens_SL, layer, torch.where(given_SL[..., None], y_SLD, x_SLD))

        losses: list[Tensor] = []
        found: dict[str | None, list[tuple[Tensor, Tensor]]] = {name: [] for name in replaced}
        at_once = len(tokens_SL)
        if lm.device.type == "cuda":
            vocabulary = lm.unembed(hidden_SLH[:1, :1]).shape[-1]
            at_once = contexts_at_once(at_once, tokens_SL.shape[1], vocabulary, on_gpu=True)
        for first in range(0, len(tokens_SL), at_once):
            block = slice(first, first + at_once)
            log_p_SLV = log_probabilities(lm.unembed(hidden_SLH[block]))
            losses.append(next_token_loss(log_p_SLV, tokens_SL[block]))
            for key, new_SLH in replaced.items():
                found[key].append(changes(log_p_SLV, lm.unembed(new_SLH[block]), tokens_SL[block]))
        ce_without.add(torch.cat(losses)[plain_SL[:, :-1]])
        for key, parts in found.items():
            ce, kl = (ce_ablated, kl_ablated) if key is None else (ce_sae[key], kl_sae[key])
            loss_SL, kl_SL = (torch.cat(blocks) for blocks in zip(*parts, strict=True))
            ce.add(loss_SL[plain_SL[:, :-1]])
            kl.add(kl_SL[plain_SL])

    ce_base, ce_abl, kl_abl = ce_without.value, ce_ablated.value, kl_ablated.value
    return {
        name: {
            "kl_div_score": ratio(kl_abl - kl_sae[name].value, kl_abl),
            "kl_div_with_ablation": kl_abl,
            "kl_div_with_sae": kl_sae[name].value,
            "ce_loss_score": ratio(ce_abl - ce_sae[name].value, ce_abl - ce_base),
            "ce_loss_with_ablation": ce_abl,
            "ce_loss_with_sae": ce_sae[name].value,
            "ce_loss_without_sae": ce_base,
        }
        for name in saes
    }


def log_probabilities(logits: Tensor) -> Tensor:
    """In at least single precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def next_token_loss(log_p_SLV: Tensor, tokens_SL: Tensor) -> Tensor:
    """Cross-entropy of each next token [S, L-1], in nats."""
    return -log_p_SLV[:, :-1].gather(-1, tokens_SL[:, 1:, None].long())[..., 0]


def changes(log_p_SLV: Tensor, new_logits_SLV: Tensor, tokens_SL: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy under new logits [S, L-1] and KL(p || softmax(new logits)) per token [S, L], in nats.

    Context by context, to copy no whole batch of logits.
    """
    loss, kl = [], []
    for log_p_LV, new_LV, tokens_L in zip(log_p_SLV, new_logits_SLV, tokens_SL, strict=True):
        log_q_LV = log_probabilities(new_LV)
        loss.append(next_token_loss(log_q_LV[None], tokens_L[None])[0])
        kl.append((log_p_LV.exp() * (log_p_LV - log_q_LV)).sum(-1))
    return torch.stack(loss), torch.stack(kl)


def ratio(numerator: float, denominator: float) -> float:
    """nan instead of an exception where the denominator is zero."""
    return numerator / denominator if denominator else float("nan")
