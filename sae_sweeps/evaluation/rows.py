"""Rows of labelled text as activations, and the mean of an SAE's features over each row.

Rows are tokenised alone, cut or padded to `context` tokens; special tokens are neither counted nor stored. Means
over tokens are all that probing, TPP and SCR need of an SAE: with an affine decoder, ablating features shifts a row's
mean activation by the mean of those features times their decoder rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation.batches import LanguageModel, by_length, is_plain
from sae_sweeps.evaluation.sums import sum_by_text, sum_features


@dataclass
class Rows:
    """Rows of all classes, concatenated; a text that occurs in several rows is stored once."""

    x_ND: Tensor
    """Activations of the tokens that are not special, text after text [N, d_in], on the CPU."""
    length_T: Tensor
    """How many of them each text has [T], int64."""
    special_T: Tensor
    """How many special tokens each text has, padding included [T], int64."""
    text_R: Tensor
    """The text of each row [R], int64."""
    n_by_class: dict[str, int]
    """Rows of each class, in the classes' order."""

    def parts(self, n_tokens: int) -> Iterator[tuple[slice, slice]]:
        """Texts and their tokens, about `n_tokens` at a time."""
        ends_T = self.length_T.cumsum(0)
        first, token = 0, 0
        while first < len(ends_T):
            last = int(torch.searchsorted(ends_T, token + n_tokens, right=True))
            last = min(max(last, first + 1), len(ends_T))
            end = int(ends_T[last - 1])
            yield slice(first, last), slice(token, end)
            first, token = last, end


@torch.no_grad()
def harvest_rows(
    texts: dict[str, list[str]],
    lm: LanguageModel,
    layer: LayerConfig,
    context: int,
    batch: int,
    progress: Callable[[int], None] = lambda n: None,
) -> Rows:
    """Activations of the texts of each class; `progress` is called with the number of texts done."""
    all_texts = [text for of_class in texts.values() for text in of_class]
    distinct = list(dict.fromkeys(all_texts))
    tokens_TL = lm.tokenize_rows(distinct, context)
    plain_TL = is_plain(tokens_TL, lm.special_ids)
    length_T = plain_TL.sum(1)
    end_T = (plain_TL * torch.arange(1, tokens_TL.shape[1] + 1)).amax(1).clamp(min=1)  # nothing is read behind it
    x = [torch.empty(0)] * len(distinct)
    done = 0
    for texts_S in by_length(end_T.tolist(), batch):
        here = torch.tensor(texts_S)[:, None], torch.arange(int(end_T[texts_S[-1]]))
        x_nD = lm.activations(tokens_TL[here], layer)[plain_TL[here].to(lm.device)].cpu()
        for text, x_LD in zip(texts_S, x_nD.split(length_T[texts_S].tolist()), strict=True):
            x[text] = x_LD
        done += len(texts_S)
        progress(done)
    n_by_class = {name: len(of_class) for name, of_class in texts.items()}
    number = {text: n for n, text in enumerate(distinct)}
    text_R = torch.tensor([number[text] for text in all_texts])
    return Rows(torch.cat(x), length_T, context - length_T, text_R, n_by_class)


def row_means(
    rows: Rows, total: Callable[[Tensor, Tensor], Tensor], width: int, device: torch.device | str, at_once: int = 4096
) -> Tensor:
    """Means over the tokens of each row [R, width], float32, on `device`, `at_once` tokens at a time.

    total(x [n, d_in], length [T]) is the sum over the tokens of each of T texts [T, width].
    """
    mean_TW = torch.empty(len(rows.length_T), width, device=device)
    for here, tokens in rows.parts(at_once):
        length = rows.length_T[here].to(device)
        mean_TW[here] = total(rows.x_ND[tokens].to(device), length) / length.clamp(min=1)[:, None]
    return mean_TW[rows.text_R.to(device)]


def mean_activations(rows: Rows, device: torch.device | str) -> Tensor:
    """Mean activation of each row [R, d_in]."""
    return row_means(rows, lambda x, length: sum_by_text(x.float(), length), rows.x_ND.shape[1], device)


@torch.no_grad()
def mean_features(rows: Rows, sae: ExportedSAE, at_once: int = 4096) -> Tensor:
    """Mean of each feature over the tokens of each row [R, d_sae], `at_once` tokens at a time."""
    return row_means(rows, lambda x, length: sum_features(sae.features(x), length), sae.d_sae, sae.device, at_once)


@torch.no_grad()
def at_special_tokens(rows: Rows, sae: ExportedSAE) -> Tensor:
    """What the special tokens add to each row's mean feature when their activation is set to 0 [R, d_sae].

    SAEBench zeroes activations at special tokens and, in TPP's and SCR's ablations, encodes those zeros too; features
    that fire on nothing at all then count. Its numbers contain this, so ours do.
    """
    f_F = sae.encode(torch.zeros(1, sae.d_in, device=sae.device))[0].float()
    share_R = (rows.special_T / rows.length_T.clamp(min=1))[rows.text_R]
    return share_R.to(sae.device)[:, None] * f_F
