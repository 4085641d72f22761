"""Prompts for the first letter of the vocabulary's words, and the model's own probe for it: the part of absorption that
is the same for all SAEs.

The words are split: the model's probe must find the letters of words that it was not trained on. The built-in model is
too small for that; on built-in data the commonest words serve both sides, in other prompts.

A prompt is a line break and ten lines such as ` tree has the first letter: T`, then the word's own line without its
answer; the activation at the word is used. SAEBench draws words and examples from unseeded streams and in the
order of a hash map; here words are sorted first and every draw has a stream of its own.
"""

from __future__ import annotations

import math
import random
import string
from dataclasses import dataclass
from itertools import accumulate, repeat
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from sae_sweeps.config.evaluations import AbsorptionConfig
from sae_sweeps.errors import ConfigError, DataError
from sae_sweeps.evaluation.draws import stream, stream_seed
from sae_sweeps.evaluation.questions import padded
from sae_sweeps.evaluation.shared import Shared

LETTERS = string.ascii_lowercase
WORD = "{word}"
EXAMPLES = 10
TRAIN_SHARE = 0.8
BUILTIN_WORDS = 250
"""With more, a probe on the built-in model finds too few of the letters."""
BATCH, LR, LAST_LR = 64, 0.01, 1e-5
"""Words per step of the model's own probe, and learning rates of both probes, falling exponentially."""


@dataclass
class FirstLetters:
    """The model's side of absorption."""

    train_x_ND: Tensor
    """Activations at the words for training probes [n_train, d_in], float32."""
    train_letter_N: Tensor
    """Their letters, 0 to 25."""
    test_x_ND: Tensor
    test_letter_N: Tensor
    weight_26D: Tensor
    """The model's own probe: score = x . weight + bias."""
    bias_26: Tensor
    words_x_ND: Tensor
    """Activations of the test words that the probe gets right, in new prompts; letter by letter."""
    words_letter_N: Tensor
    """Their letters."""
    words_at: Tensor
    """Their numbers among the test words."""
    words: list[str]

    def f1(self) -> list[float]:
        """F1 of the model's own probe on the test words, by letter."""
        scores = self.test_x_ND @ self.weight_26D.T + self.bias_26
        return [f1_score(self.test_letter_N == letter, scores[:, letter] > 0) for letter in range(26)]


def f1_score(true_N: Tensor, predicted_N: Tensor) -> float:
    """2 TP / (2 TP + FP + FN), 0 where there is nothing."""
    hits = int((true_N & predicted_N).sum())
    total = int(true_N.sum()) + int(predicted_N.sum())
    return 2 * hits / total if total else 0.0


def vocabulary(tokenizer: Any, commonest: int | None = None) -> list[str]:
    """Every token that is letters, with or without a leading blank, sorted; or the `commonest` of lowest id."""
    found: dict[str, None] = {}
    for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = tokenizer.convert_tokens_to_string([token])
        if token.startswith("▁") and not word.startswith(" "):  # some tokenizers drop the blank of a first token
            word = f" {word}"
        bare = word.removeprefix(" ")
        if bare and all(char in string.ascii_letters for char in bare):
            found[word] = None
    return sorted(list(found)[:commonest])


def letter_of(word: str) -> int:
    return LETTERS.index(word.strip()[0].lower())


def prompt(template: str, word: str, examples: list[str], rng: random.Random) -> str:
    """Ten examples, none of them the word, and the word's own line."""
    shown = rng.sample(examples, EXAMPLES)
    while word in shown:
        shown = rng.sample(examples, EXAMPLES)
    lines = [f"{template.replace(WORD, example)} {example.strip()[0].upper()}" for example in shown]
    return "\n".join(["", *lines, template.replace(WORD, word)])


def first_letters(shared: Shared) -> FirstLetters:
    """Words, activations and probe, computed once. Raises DataError for too small a vocabulary."""
    cfg, seed = shared.cfg.absorption, shared.cfg.seed
    if cfg.template.count(WORD) != 1:
        raise ConfigError(f"eval.absorption.template={cfg.template}: must have {WORD} in it once.")
    builtin = shared.source.kind == "builtin"
    words = vocabulary(shared.lm.tokenizer, BUILTIN_WORDS if builtin else None)
    random.Random(stream_seed(seed, "words")).shuffle(words)
    words = words[: cfg.max_words]
    cut = int(len(words) * TRAIN_SHARE)
    train, test = (words, words) if builtin else (words[:cut], words[cut:])
    if min(len(train), len(test)) <= EXAMPLES:
        raise DataError(
            f"absorption: the tokenizer has {len(words)} words, too few for prompts of {EXAMPLES} examples."
        )

    def make() -> dict[str, Tensor]:
        shared.begin("first letters", len(train) + 2 * len(test), "prompt")
        made = {}
        for split, part in (("train", train), ("test", test)):
            rng = random.Random(stream_seed(seed, "prompts", split))
            made[f"{split}_x"] = at_words([prompt(cfg.template, w, part, rng) for w in part], shared)
        letters = torch.tensor([letter_of(word) for word in train])
        made["weight"], made["bias"] = letter_probe(
            made["train_x"], letters, stream(seed, "letter probe"),
            batch_size=BATCH, epochs=cfg.epochs, weight_decay=1e-4,
        )  # fmt: skip
        right = right_words(made["test_x"] @ made["weight"].T + made["bias"], test)
        rng = random.Random(stream_seed(seed, "prompts", "absorption"))
        made["words_x"] = at_words([prompt(cfg.template, test[i], words, rng) for i in right], shared)
        return made

    how = {"seed": seed, "words": cfg.max_words, "epochs": cfg.epochs, "builtin": builtin}
    key = shared.model_key() | {"what": "first letters"} | how
    key |= {"template": cfg.template, "token_pos": cfg.token_pos}
    kept = shared.kept(key, make)
    right = right_words(kept["test_x"] @ kept["weight"].T + kept["bias"], test)
    return FirstLetters(
        kept["train_x"],
        torch.tensor([letter_of(word) for word in train]),
        kept["test_x"],
        torch.tensor([letter_of(word) for word in test]),
        kept["weight"],
        kept["bias"],
        kept["words_x"],
        torch.tensor([letter_of(test[i]) for i in right], dtype=torch.long),
        torch.tensor(right, dtype=torch.long),
        [test[i] for i in right],
    )


def right_words(scores_N26: Tensor, words: list[str]) -> list[int]:
    """Indices of the words whose letter the probe predicts, in the order of the letters."""
    letters = [letter_of(word) for word in words]
    seen = [bool(scores_N26[i, letter] > 0) for i, letter in enumerate(letters)]
    return [i for target in range(26) for i, letter in enumerate(letters) if letter == target and seen[i]]


@torch.no_grad()
def at_words(prompts: list[str], shared: Shared) -> Tensor:
    """Activations [n, d_in], float32, at `token_pos` of each prompt, or at the last token of its word."""
    lm, batch = shared.lm, shared.cfg.llm_batch
    position = token_position(shared.cfg.absorption, lm.tokenizer)
    out = []
    for first in range(0, len(prompts), batch):
        rows = lm.tokenizer(prompts[first : first + batch], add_special_tokens=False)["input_ids"]
        rows = [([] if lm.bos_id is None else [lm.bos_id]) + row for row in rows]
        tokens_SL, length_S = padded(rows)
        if position >= 0 or min(length_S) < -position:
            raise ConfigError(
                f"eval.absorption.token_pos={position}: must be a token from the end, -1 to {-int(min(length_S))}."
            )
        x_SLD = lm.activations(tokens_SL, shared.layer)
        out.append(x_SLD[torch.arange(len(rows)), (length_S + position).to(x_SLD.device)].float().cpu())
        shared.advance(len(rows))
    return torch.cat(out)


def token_position(cfg: AbsorptionConfig, tokenizer: Any) -> int:
    """The token of a prompt whose activation is used, from the end: SAEBench's prompt_token_pos."""
    if cfg.token_pos is not None:
        return cfg.token_pos
    behind = cfg.template.partition(WORD)[2]
    return -len(tokenizer(behind, add_special_tokens=False)["input_ids"]) - 1


def learning_rates(epochs: int) -> list[float]:
    """Of each epoch of a probe on letters."""
    gamma = math.exp(math.log(LAST_LR / LR) / epochs)
    return list(accumulate(repeat(gamma, epochs - 1), mul, initial=LR))


def letter_probe(
    x_ND: Tensor,
    letter_N: Tensor,
    generator: torch.Generator,
    *,
    batch_size: int,
    epochs: int,
    weight_decay: float,
    l1: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """weight [26, d] and bias [26] of 26 logistic regressions by Adam, lr falling exponentially.

    Positives weigh as much as negatives; `l1` times the mean over letters of sum |weight| is added to the loss.
    """
    d, device = x_ND.shape[1], x_ND.device
    weight, bias = torch.empty(26, d), torch.empty(26)
    torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    bias.uniform_(-1 / math.sqrt(d), 1 / math.sqrt(d), generator=generator)
    weight, bias = weight.to(device).requires_grad_(), bias.to(device).requires_grad_()
    y_N26 = one_hot(letter_N, 26).to(device=device, dtype=x_ND.dtype)
    positive = y_N26.sum(0)
    balance = (len(y_N26) - positive) / positive.clamp(min=1)
    optimizer = torch.optim.Adam([weight, bias], lr=LR, weight_decay=weight_decay)
    with torch.enable_grad():
        for lr in learning_rates(epochs):
            optimizer.param_groups[0]["lr"] = lr
            for rows in torch.randperm(len(x_ND), generator=generator).to(device).split(batch_size):
                optimizer.zero_grad()
                scores = torch.nn.functional.linear(x_ND[rows], weight, bias)
                loss = binary_cross_entropy_with_logits(scores, y_N26[rows], pos_weight=balance)
                if l1:
                    loss = loss + l1 * weight.abs().sum(-1).mean()
                loss.backward()
                optimizer.step()
    return weight.detach(), bias.detach()
