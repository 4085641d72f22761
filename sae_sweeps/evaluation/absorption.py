"""Feature absorption (Chanin et al. 2024, arXiv:2409.14507), by SAEBench's definition.

For each letter, the features of the smallest sparse probe that cannot be bettered are the letter's own (several: it is
split). Where they are silent on a word whose letter the model knows, and another feature aligned with the letter's
direction carries the projection instead, that feature has absorbed the letter. `mean_full_absorption_score` is the
share of such words (one absorber, all own features silent), `mean_absorption_fraction_score` how much of the projection
up to three absorbers carry; means over the letters that the model's own probe finds (F1 > 0.6).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import AbsorptionConfig, Evaluation
from sae_sweeps.evaluation.draws import stream
from sae_sweeps.evaluation.first_letters import (
    BATCH,
    LETTERS,
    FirstLetters,
    f1_score,
    first_letters,
    learning_rates,
    letter_probe,
    token_position,
)
from sae_sweeps.evaluation.logistic import fitted
from sae_sweeps.evaluation.probes import unconverged
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.selection import fold_masks
from sae_sweeps.evaluation.shared import Shared

SILENT = 1e-8
"""Activation below which a feature counts as silent."""
ALIGNED_FULL = 0.025
"""Cosine with the letter's direction that a full absorber needs."""
ALIGNED_FRACTION = 0.1
"""The same of an absorber that counts for the fraction."""
SHARE = 0.4
"""Of the word's projection that absorbers must carry."""
MOST_ABSORBERS = 3
PROBE_BATCH, BUILTIN_PROBE_BATCH = 4096, 16
"""Words per step of the L1 probe: SAEBench's, and for the 250 words of built-in data, of which that is one step."""

METRICS = {
    "mean_absorption_score": ("lower", "absorption"),
    "mean_full_absorption_score": ("lower", "full_absorption"),
    "mean_absorption_fraction_score": ("lower", "absorption_fraction"),
    "mean_num_split_features": (None, "splits"),
    "std_dev_(absorption_fraction_score|full_absorption_score|num_split_features)": (None, None),
}
NAMES = (
    "mean_absorption_fraction_score",
    "mean_full_absorption_score",
    "mean_num_split_features",
    "std_dev_absorption_fraction_score",
    "std_dev_full_absorption_score",
    "std_dev_num_split_features",
)


@dataclass
class LetterAbsorption:
    """One letter of one SAE; fractions are of the words that the model's probe gets right."""

    letter: int
    n_split: float
    """Features of the letter; the mean over folds."""
    fraction: float
    n_full: int
    n_words: int
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Words that one feature has absorbed wholly, as `examples` gives them."""

    def detail(self) -> dict[str, Any]:
        """SAEBench's entry for the letter."""
        return {
            "first_letter": LETTERS[self.letter],
            "mean_absorption_fraction": self.fraction,
            "full_absorption_rate": self.n_full / self.n_words,
            "num_full_absorption": self.n_full,
            "num_probe_true_positives": self.n_words,
            "num_split_features": round(self.n_split),  # a whole number in SAEBench's file
        }


def evaluate_absorption(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: AbsorptionConfig) -> dict[str, Result]:
    """Absorption of SAEs of one hook."""
    letters = first_letters(shared)
    known = [letter for letter, f1 in enumerate(letters.f1()) if f1 > cfg.min_probe_f1]
    few = few_steps(len(letters.train_x_ND), cfg, probe_batch(shared))
    out = {}
    for name, sae in shared.each("absorption", saes):
        warnings, found = list(few), []
        if len(known) < cfg.min_letters:
            warnings.append(
                f"not scored: the model's probe finds {len(known)} first letters (F1 above {cfg.min_probe_f1}), and "
                f"{cfg.min_letters} are needed"
            )
        else:
            found = absorption(sae, letters, known, shared)
            absent = [LETTERS[i] for i in known if i not in {letter.letter for letter in found}]
            if absent:
                warnings.append(f"letters without a word to judge: {', '.join(absent)}")
        metrics = summary(found)
        older = {"mean_absorption_score": metrics["mean_full_absorption_score"]} if found else {}
        out[name] = shared.result(
            "absorption", name, sae, eval_config(shared, cfg), {"mean": metrics},
            details=[letter.detail() for letter in found], warnings=warnings, also=older,
            data="builtin" if shared.source.kind == "builtin" else "saebench",  # the words are the tokenizer's
            more={"absorbed": [one for letter in found for one in letter.examples]},
        )  # fmt: skip
    return out


@torch.no_grad()
def absorption(sae: ExportedSAE, letters: FirstLetters, known: list[int], shared: Shared) -> list[LetterAbsorption]:
    """What each known letter's features do on the words of that letter, none of which chose how many they are."""
    cfg = shared.cfg.absorption
    train_NF, test_NF = (encode(sae, x, shared.cfg.sae_batch) for x in (letters.train_x_ND, letters.test_x_ND))
    weight_26F, _ = letter_probe(
        train_NF, letters.train_letter_N, stream(shared.cfg.seed, "feature probe"),
        batch_size=probe_batch(shared), epochs=cfg.epochs, weight_decay=1e-6, l1=cfg.l1_decay,
    )  # fmt: skip
    train, test_letter_N = (train_NF, letters.train_letter_N), letters.test_letter_N
    parts = fold_masks(test_letter_N, shared.cfg.selection)
    out = []
    for letter in known:
        here = letters.words_letter_N == letter
        if not here.any():
            continue
        n_split, fraction, full, found = [], [], [], []
        for choosing_N, measured_N in parts:
            words = here & measured_N[letters.words_at]
            if not words.any():
                continue
            test = test_NF[choosing_N.to(test_NF.device)], test_letter_N[choosing_N]
            split = split_features(letter, weight_26F[letter], train, test, cfg)
            fraction_n, full_n = absorbed(sae, letters.words_x_ND[words], letters.weight_26D[letter], split)
            n_split.append(len(split))
            fraction.append(fraction_n)
            full.append(full_n)
            absorbed_N = words.clone()
            absorbed_N[words] = full_n.cpu()
            found += examples(sae, letters, letter, absorbed_N, split)
        share = torch.cat(fraction).double().mean().item()
        out.append(LetterAbsorption(letter, mean(n_split), share, int(torch.cat(full).sum()), int(here.sum()), found))
    return out


def examples(
    sae: ExportedSAE, letters: FirstLetters, letter: int, absorbed_N: Tensor, split: list[int]
) -> list[dict[str, Any]]:
    """Each absorbed word with the letter's features, which are silent on it, and the feature that fires in their place:
    its cosine with the letter's direction, and its share of the word's projection on that."""
    x_nD, direction_D = letters.words_x_ND[absorbed_N].to(sae.device), letters.weight_26D[letter]
    u_D = (direction_D / direction_D.norm()).to(sae.device)
    cos_F = cosine_similarity(u_D, sae.weights["W_dec"].float(), dim=-1)
    share_n, absorber_n = (encode(sae, x_nD) * cos_F / (x_nD.float() @ u_D)[:, None]).max(1)
    found = zip(absorbed_N.nonzero()[:, 0].tolist(), absorber_n.tolist(), share_n.tolist(), strict=True)
    return [
        {"letter": LETTERS[letter], "word": letters.words[at], "features": split, "absorber": absorber,
         "cosine": float(cos_F[absorber]), "share": share}
        for at, absorber, share in found
    ]  # fmt: skip


def probe_batch(shared: Shared) -> int:
    """Words per step of the L1 probe."""
    usual = BUILTIN_PROBE_BATCH if shared.source.kind == "builtin" else PROBE_BATCH
    return shared.cfg.absorption.probe_batch or usual


def few_steps(n_words: int, cfg: AbsorptionConfig, batch: int) -> list[str]:
    """Warnings where one of the probes takes too few steps to converge."""
    lrs = learning_rates(cfg.epochs)
    mends = {BATCH: "raise eval.absorption.epochs", batch: "lower eval.absorption.probe_batch"}
    found = {size: unconverged(n_words, size, lrs) for size in mends}
    return [f"{why}; {mends[size]}" for size, why in found.items() if why]


def encode(sae: ExportedSAE, x_ND: Tensor, at_once: int = 4096) -> Tensor:
    """Features of the activations [n, d_sae], float32, `at_once` at a time."""
    return torch.cat([sae.encode(part.to(sae.device)).float() for part in x_ND.split(at_once)])


def split_features(
    letter: int, weight_F: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], cfg: AbsorptionConfig
) -> list[int]:
    """Features of the letter: those of the largest k in a row whose sparse probe betters the last F1 by `f1_jump`.

    `train` and `test` are features [n, d_sae] and letters [n] of the words; `weight_F` is the L1 probe's.
    """
    (train_NF, train_letter_N), (test_NF, test_letter_N) = train, test

    best, chosen = -100.0, torch.empty(0, dtype=torch.long)
    is_letter = (train_letter_N == letter).numpy()
    for k in range(1, min(cfg.max_k, len(weight_F)) + 1):
        features = weight_F.topk(k).indices
        probe = fitted(train_NF[:, features].cpu().numpy(), is_letter, max_iter=500, class_weight="balanced")
        w, b = torch.tensor(probe.coef_[0]).float(), torch.tensor(probe.intercept_[0]).float()
        f1 = f1_score(test_letter_N == letter, test_NF[:, features].cpu() @ w + b > 0)
        if f1 <= best + cfg.f1_jump:
            break
        best, chosen = f1, features
    return chosen.tolist()


def absorbed(sae: ExportedSAE, x_nD: Tensor, direction_D: Tensor, split: list[int]) -> tuple[Tensor, Tensor]:
    """Absorption fraction [n] of each word, and whether one feature has absorbed the letter wholly [n]."""
    x_nD = x_nD.to(sae.device)
    u_D = (direction_D / direction_D.norm()).to(sae.device)
    cos_F = cosine_similarity(u_D, sae.weights["W_dec"].float(), dim=-1)
    f_nF = encode(sae, x_nD)
    p_nF = f_nF * cos_F
    total_n = x_nD.float() @ u_D
    own_n = p_nF[:, split].sum(1)

    others_F = cos_F >= ALIGNED_FRACTION
    others_F[split] = False
    candidates_nF = torch.where(others_F & (p_nF > 0), p_nF, 0)
    absorbers_n = candidates_nF.topk(min(MOST_ABSORBERS, sae.d_sae), dim=1).values.sum(1)
    taken_n = torch.minimum(absorbers_n, total_n - own_n)
    fraction_n = (taken_n / (taken_n + own_n)).clamp(0, 1)
    fraction_n = torch.where(own_n <= 0, 1.0, fraction_n)
    fraction_n = torch.where((own_n >= total_n) | (absorbers_n / total_n < SHARE), 0.0, fraction_n)

    top_n, top = p_nF.max(1)
    full_n = (f_nF[:, split] < SILENT).all(1) & (cos_F[top] >= ALIGNED_FULL) & (total_n >= 0)
    return fraction_n, full_n & (top_n / total_n >= SHARE)


def summary(found: list[LetterAbsorption]) -> dict[str, float]:
    """SAEBench's means and sample standard deviations over letters; nan where there are none."""
    columns = [
        [letter.fraction for letter in found],
        [letter.n_full / letter.n_words for letter in found],
        [float(letter.n_split) for letter in found],
    ]
    means = [mean(column) if column else float("nan") for column in columns]
    spreads = [stdev(column) if len(column) > 1 else float("nan") for column in columns]
    return dict(zip(NAMES, means + spreads, strict=True))


def eval_config(shared: Shared, cfg: AbsorptionConfig) -> dict[str, Any]:
    """By SAEBench's names."""
    return {
        "model_name": shared.model_name,
        "random_seed": shared.cfg.seed,
        "f1_jump_threshold": cfg.f1_jump,
        "max_k_value": cfg.max_k,
        "prompt_template": cfg.template,
        "prompt_token_pos": token_position(cfg, shared.lm.tokenizer),
        "llm_batch_size": shared.cfg.llm_batch,
        "llm_dtype": shared.llm_dtype,
        "k_sparse_probe_l1_decay": cfg.l1_decay,
        "k_sparse_probe_batch_size": probe_batch(shared),
        "k_sparse_probe_num_epochs": cfg.epochs,
        "min_GT_probe_f1": cfg.min_probe_f1,
        "min_feats_for_eval": cfg.min_letters,
        "eval_k_sparse_probe_batch_size": 24,
        "precalc_k_sparse_probe_sae_acts": True,
    }


EVALUATION = Evaluation(
    "absorption", evaluate_absorption, METRICS, reads=("data", "seed", "selection", "absorption"), version=2
)
