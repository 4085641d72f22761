"""Unlearning (Farrell et al. 2024, arXiv:2410.19278), by SAEBench's definition.

Features that fire on text to forget and hardly on text to retain are clamped to a negative value wherever they fire.
`unlearning_score` is how far that brings down the share of right answers about what is to be forgotten, in the best
setting that leaves at least 99 % of the answers about other subjects right. Only questions that the model answers right
by itself count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import Evaluation, UnlearningConfig
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.batches import by_length, is_plain
from sae_sweeps.evaluation.draws import stream, stream_seed
from sae_sweeps.evaluation.questions import Candidates, QuestionSet, answers_of, padded
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.tasks import question_sets

METRICS = {"unlearning_score": ("higher", "unlearning")}

CHUNKS = 20
"""Parts in which SAEBench tokenises a corpus."""
CONTEXTS_AT_ONCE = 8
DIGITS = 6
"""SAEBench writes how often features fire with six decimals and reads that back; ties arise that way."""


@dataclass
class Setting:
    """One way to clamp, and the shares of answers that stay right."""

    retain_threshold: float
    n_features: int
    multiplier: int
    forget: float
    """Share of the questions about what is to be forgotten."""
    side: float
    """Share of all other questions."""
    halves: tuple[tuple[float, float], ...] = ()
    """Both shares on each half of the questions, where one half chooses the setting and the other measures it."""

    @property
    def name(self) -> str:
        return f"multiplier{self.multiplier}_nfeatures{self.n_features}_retainthres{self.retain_threshold}"


def evaluate_unlearning(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: UnlearningConfig) -> dict[str, Result]:
    """Unlearning with SAEs of one hook."""
    questions = answered(shared)
    firing = {split: firing_shares(saes, corpus_tokens(shared, split), shared) for split in ("forget", "retain")}
    batches = list(question_batches(questions, shared))
    counts = {(kind, half): 0 for kind, half in product((True, False), (False, True))}
    for batch in batches:
        for half in batch.second.tolist():
            counts[batch.questions.forget, half] += 1
    out = {}
    for name, sae in shared.each("unlearning", saes):
        warnings = [
            f"the model answers none of the questions about what is to be {word} right: there is nothing to measure"
            for kind, word in ((True, "forgotten"), (False, "retained"))
            if not counts[kind, False]
        ]
        settings: list[Setting] = []
        if not warnings:
            found = {split: firing[split][name] for split in firing}
            settings, few = all_settings(sae, found["forget"], found["retain"], batches, counts, cfg, shared)
            warnings += few
            if shared.cfg.selection == "validation" and not all(counts.values()):
                warnings.append("too few questions for two halves: those that choose the setting also measure it")
            warnings += side_effects(settings, cfg)
        out[name] = shared.result(
            "unlearning", name, sae, eval_config(shared, cfg, [q.name for q in questions]),
            {"unlearning": {"unlearning_score": score(settings, cfg)}},
            unstructured={setting.name: {"forget": setting.forget, "side": setting.side} for setting in settings},
            warnings=warnings,
        )  # fmt: skip
    return out


def chosen_settings(settings: list[Setting], cfg: UnlearningConfig) -> list[tuple[float, float] | None]:
    """Shares of forget and of other answers of the best setting without side effects, in each fold; None without one.

    The first half of the questions chooses and the second measures, then the other way round; where settings have no
    halves, as in SAEBench, the questions that choose also measure.
    """
    found: list[tuple[float, float] | None] = []
    for choose, measure in ((0, 1), (1, 0)) if settings and settings[0].halves else ((0, 0),):
        shares = [setting.halves or ((setting.forget, setting.side),) for setting in settings]
        allowed = [share for share in shares if share[choose][1] >= cfg.side_effect]
        found.append(min(allowed, key=lambda share: share[choose][0])[measure] if allowed else None)
    return found


def score(settings: list[Setting], cfg: UnlearningConfig) -> float:
    """1 - the share of forget answers in the chosen setting, mean over folds; nan where nothing was measured."""
    if not settings:
        return float("nan")
    return 1.0 - mean(1.0 if shares is None else shares[0] for shares in chosen_settings(settings, cfg))


def side_effects(settings: list[Setting], cfg: UnlearningConfig) -> list[str]:
    """Warnings where no setting is allowed, or the chosen one has side effects on the questions that measure it."""
    chosen = chosen_settings(settings, cfg)
    if None in chosen:
        where = "" if len(chosen) == 1 else " of one half" if any(chosen) else " of either half"
        left = f"no setting leaves {cfg.side_effect:.0%} of the other answers{where} right"
        return [f"{left}: the score {'counts 0 there' if any(chosen) else 'is 0'}"]
    side = mean(shares[1] for shares in chosen if shares is not None)
    if side >= cfg.side_effect:
        return []
    return [f"the chosen setting leaves {side:.1%} of the other answers right, fewer than {cfg.side_effect:.0%}"]


def corpus_tokens(shared: Shared, split: str) -> Tensor:
    """Contexts [n, L] of the corpus to forget or to retain, drawn by the seed."""
    cfg, tokenizer = shared.cfg.unlearning, shared.lm.tokenizer
    texts = shared.source.corpus(split)
    n, length = shared.source.corpus_size(cfg.contexts, cfg.context)
    if split == "forget":  # SAEBench samples texts of this one only
        import random

        texts = random.Random(stream_seed(shared.cfg.seed, "forget texts")).sample(texts, min(n, len(texts)))
    tokens_NL = joined(texts, tokenizer, length, shared.lm.bos_id)
    order = torch.randperm(len(tokens_NL), generator=stream(shared.cfg.seed, "contexts", split))
    return tokens_NL[order][:n]


def joined(texts: list[str], tokenizer: Any, length: int, bos_id: int | None) -> Tensor:
    """Texts joined by EOS, cut into 20 pieces of equal length, tokenised, and cut into rows that begin with BOS."""
    text = (tokenizer.eos_token or "\n").join(texts)
    piece = (len(text) - 1) // CHUNKS + 1
    pieces = [text[i * piece : (i + 1) * piece] for i in range(CHUNKS)]
    start, pad_id = [] if bos_id is None else [bos_id], tokenizer.pad_token_id
    found = tokenizer([p for p in pieces if p], add_special_tokens=False, verbose=False)["input_ids"]
    ids = [token for row in found for token in start + row if token != pad_id]
    n = len(ids) // length
    if not n:
        raise DataError(f"unlearning: the text does not fill one context of {length} tokens; give more text.")
    tokens_NL = torch.tensor(ids[: n * length]).view(n, length)
    if bos_id is not None:
        tokens_NL[:, 0] = bos_id
    return tokens_NL


def firing_shares(saes: Mapping[str, ExportedSAE], tokens_NL: Tensor, shared: Shared) -> dict[str, np.ndarray]:
    """Share of the non-special tokens on which each feature fires [d_sae], from one pass of the model for all SAEs."""
    counts = shared.firing_counts("unlearning corpus", saes, tokens_NL, CONTEXTS_AT_ONCE)
    n_plain = int(is_plain(tokens_NL, shared.lm.special_ids).sum())
    return {name: (count / n_plain).cpu().numpy().astype(float).round(DIGITS) for name, count in counts.items()}


def answered(shared: Shared) -> list[QuestionSet]:
    """The questions that the model answers right by itself, found once."""
    seed, cfg = shared.cfg.seed, shared.cfg.unlearning
    every = shared.source.questions(shared.lm, cfg, seed, question_sets(shared.source, shared.cfg))

    def make() -> dict[str, Tensor]:
        return {q.name: right_questions(q, shared) for q in every}

    how = {"source": shared.source.digest, "seed": seed, "all_orders": cfg.all_orders}
    if cfg.questions != "correct":
        how["questions"] = cfg.questions
    if cfg.datasets is not None:
        how["sets"] = cfg.datasets
    key = shared.model_key() | {"what": "questions"} | how
    kept = shared.kept(key, make)
    return [q.questions.only(kept[q.name].nonzero()[:, 0].tolist()) for q in every]


@torch.no_grad()
def right_questions(candidates: Candidates, shared: Shared) -> Tensor:
    """Which questions the model answers right in every order of the choices that is put to it [n], bool; less those
    that it answers right in every order without seeing the question, where they are to be left out."""
    right = all_right(candidates.trial, candidates, shared)
    return right & ~all_right(candidates.unseen, candidates, shared) if candidates.unseen is not None else right


def all_right(trial: QuestionSet, candidates: Candidates, shared: Shared) -> Tensor:
    """Which questions are answered right in all their orders [n], bool."""
    shared.begin(candidates.name, len(trial.rows), "prompt")
    right = torch.empty(len(trial.answers), dtype=torch.bool)
    for batch in question_batches([trial], shared):
        hidden = shared.lm.resume(batch.tokens_SL, shared.layer, batch.x_SLD)
        chosen = answers_of(hidden, batch.tokens_SL, batch.length_S, batch.questions, shared.lm)
        right[batch.numbers] = chosen == batch.answers
        shared.advance(len(batch.tokens_SL))
    return right.view(-1, candidates.orders).all(1)


@dataclass
class QuestionBatch:
    """Rows of one question set with their activations at the hook."""

    questions: QuestionSet
    numbers: list[int]
    """The questions' numbers in the set [n]."""
    tokens_SL: Tensor
    length_S: Tensor
    x_SLD: Tensor
    answers: Tensor
    second: Tensor
    """Which questions are in the second half [n], bool; none where the questions that choose also measure."""


@torch.no_grad()
def question_batches(questions: list[QuestionSet], shared: Shared) -> Iterator[QuestionBatch]:
    """The questions in batches by length, run up to the layer once for all SAEs and settings."""
    for one in questions:
        n = one.per_question
        answers, rows = torch.tensor(one.answers), [one.rows[first : first + n] for first in range(0, len(one.rows), n)]
        second = (torch.arange(len(answers)) % 2).bool() & (shared.cfg.selection == "validation")
        longest = [max(map(len, of_question)) for of_question in rows]
        for numbers in by_length(longest, max(1, shared.cfg.llm_batch // n)):
            tokens_SL, length_S = padded([row for number in numbers for row in rows[number]])
            x_SLD = shared.lm.activations(tokens_SL, shared.layer)
            yield QuestionBatch(one, numbers, tokens_SL, length_S, x_SLD, answers[numbers], second[numbers])


def candidates_for(forget_F: np.ndarray, retain_F: np.ndarray, threshold: float) -> np.ndarray:
    """Features that fire on text to forget and on less than `threshold` of the text to retain, most frequent first."""
    kept = np.where(retain_F >= threshold, 0.0, forget_F)
    ranked = np.argsort(kept, kind="stable")[::-1]
    return ranked[: np.count_nonzero(kept)].copy()


@torch.no_grad()
def all_settings(
    sae: ExportedSAE,
    forget_F: np.ndarray,
    retain_F: np.ndarray,
    batches: list[QuestionBatch],
    counts: dict[tuple[bool, bool], int],
    cfg: UnlearningConfig,
    shared: Shared,
) -> tuple[list[Setting], list[str]]:
    """Every setting with its shares of right answers, and warnings where features are too few.

    A row on which no chosen feature fires is answered as before, right; only the others are run again, from the layer.
    """
    features = {t: torch.from_numpy(candidates_for(forget_F, retain_F, t)) for t in cfg.retain_thresholds}
    sizes = ((t, min(n, len(features[t]))) for t, n in product(cfg.retain_thresholds, cfg.n_features))
    wanted = {(t, n): features[t][:n] for t, n in sizes}  # where features are few, two numbers mean the same ones
    few = [f"{len(features[t])} (threshold {t})" for t in features if len(features[t]) < max(cfg.n_features)]
    warnings = [f"fewer than {max(cfg.n_features)} features to clamp: {', '.join(few)}"] if few else []
    wrong = {(t, n, m): dict.fromkeys(counts, 0) for (t, n), m in product(wanted, cfg.multipliers)}
    union = torch.cat(list(features.values())).unique()
    W_dec = sae.weights["W_dec"]
    for batch in batches:
        if not len(union):
            break
        f_SLU = torch.stack([sae.encode(x_LD)[:, union] for x_LD in batch.x_SLD])
        f_SLU[:, 0] = 0  # SAEBench leaves BOS alone
        for (t, n), chosen in wanted.items():
            at = torch.searchsorted(union, chosen.sort().values)
            f_SLn = f_SLU[..., at]
            inside = torch.arange(f_SLn.shape[1]) < batch.length_S[:, None]
            touched = ((f_SLn > 0).any(-1).cpu() & inside).any(1)
            whole = touched.view(-1, batch.questions.per_question).any(1)
            rows = whole.repeat_interleave(batch.questions.per_question)
            if not rows.any():
                continue
            f_here, W_n = f_SLn[rows], W_dec[union[at]]
            for m in cfg.multipliers:
                shift = torch.where(f_here > 0, -m - f_here, 0) @ W_n
                x = batch.x_SLD[rows].to(shift) + shift
                hidden = shared.lm.resume(batch.tokens_SL[rows], shared.layer, x)
                chosen_S = answers_of(hidden, batch.tokens_SL[rows], batch.length_S[rows], batch.questions, shared.lm)
                is_wrong, is_second = chosen_S != batch.answers[whole], batch.second[whole]
                for half in (False, True):
                    wrong[t, n, m][batch.questions.forget, half] += int((is_wrong & (is_second == half)).sum())

    def right(w: dict[tuple[bool, bool], int], *halves: bool) -> tuple[float, float]:
        forget, side = (
            1 - sum(w[kind, half] for half in halves) / max(1, sum(counts[kind, half] for half in halves))
            for kind in (True, False)
        )
        return forget, side

    has_halves = all(counts.values())
    settings = [
        Setting(t, n, m, *right(w, False, True), (right(w, False), right(w, True)) if has_halves else ())
        for (t, n, m), w in wrong.items()
    ]
    return settings, warnings


def eval_config(shared: Shared, cfg: UnlearningConfig, names: list[str]) -> dict[str, Any]:
    """By SAEBench's names."""
    n, length = shared.source.corpus_size(cfg.contexts, cfg.context)
    return {
        "random_seed": shared.cfg.seed,
        "dataset_names": names,
        "intervention_method": "clamp_feature_activation",
        "retain_thresholds": cfg.retain_thresholds,
        "n_features_list": cfg.n_features,
        "multipliers": cfg.multipliers,
        "dataset_size": n,
        "seq_len": length,
        "n_batch_loss_added": 50,
        "target_metric": cfg.questions,
        "save_metrics": True,
        "model_name": shared.model_name,
        "llm_batch_size": shared.cfg.llm_batch,
        "llm_dtype": shared.llm_dtype,
    }


EVALUATION = Evaluation(
    "unlearning", evaluate_unlearning, METRICS, reads=("data", "seed", "selection", "unlearning"), version=2
)
