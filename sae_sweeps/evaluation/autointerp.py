"""Automated interpretability by SAEBench's definition: a judge model explains a feature from texts on which it fires,
then predicts for fourteen shuffled texts whether it fires; the score is the share of right predictions.

The seed and the SAE alone decide which features and texts are used; two runs of the same judge may differ. Requests are
sent only after the cost was estimated and with `eval.autointerp.confirm=true`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import AutointerpConfig, Evaluation
from sae_sweeps.errors import ConfigError
from sae_sweeps.evaluation.answers import Answers
from sae_sweeps.evaluation.batches import is_plain
from sae_sweeps.evaluation.draws import stream, stream_seed
from sae_sweeps.evaluation.judge import Judge, Messages
from sae_sweeps.evaluation.result import Result
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.storage.printing import print_line

METRICS = {"autointerp_score": ("higher", "autointerp")}

ANSWERS = "autointerp.answers.jsonl"
"""Beside `autointerp.json`: the judge's answers as they came."""

CHARS_PER_TOKEN = 4

EXPLAIN = (
    "We're studying neurons in a neural network. Each neuron activates on some particular "
    "word/words/substring/concept in a short document. The activating words in each document are indicated "
    "with << ... >>. We will give you a list of documents on which the neuron activates, in order from most "
    "strongly activating to least strongly activating. Look at the parts of the document the neuron activates "
    "for and summarize in a single sentence what the neuron is activating on. Try not to be overly specific in "
    "your explanation. Note that some neurons will activate only on specific words or substrings, but others "
    "will activate on most/all words in a sentence provided that sentence contains some particular concept. "
    "Your explanation should cover most or all activating words (for example, don't give an explanation which "
    "is specific to a single word if all words in a sentence cause the neuron to activate). Pay attention to "
    "things like the capitalization and punctuation of the activating words or concepts, if that seems "
    "relevant. Keep the explanation as short and simple as possible, limited to 20 words or less. Omit "
    "punctuation and formatting. You should avoid giving long lists of words."
)
DEMOS = (
    ' Some examples: "This neuron '
    "activates on the word 'knows' in rhetorical questions\", and \"This neuron activates on verbs related to "
    "decision-making and preferences\", and \"This neuron activates on the substring 'Ent' at the start of "
    'words", and "This neuron activates on text about government economic policy".'
)
NO_DEMOS = 'Your response should be in the form "This neuron activates on...".'
PREDICT = (
    "We're studying neurons in a neural network. Each neuron activates on some particular "
    "word/words/substring/concept in a short document. You will be given a short explanation of what this "
    "neuron activates for, and then be shown {n} example sequences in random order. You will have to return a "
    "comma-separated list of the examples where you think the neuron should activate at least once, on ANY of "
    'the words or substrings in the document. For example, your response might look like "{example}". Try not '
    "to be overly specific in your interpretation of the explanation. If you think there are no examples where "
    'the neuron will activate, you should just respond with "None". You should include nothing else in your '
    'response other than comma-separated numbers or the word "None" - this is important.'
)


@dataclass
class Example:
    """A piece of text and how strongly the feature fires on its tokens."""

    tokens: list[str]
    activations: list[float]
    threshold: float

    @property
    def active(self) -> bool:
        return any(a > self.threshold for a in self.activations)

    def text(self, mark: bool) -> str:
        pieces = (
            f"<<{token}>>" if mark and a > self.threshold else token
            for token, a in zip(self.tokens, self.activations, strict=True)
        )
        return "".join(pieces).replace("�", "").replace("\n", "↵")


@dataclass
class Question:
    """The two requests to the judge about one feature."""

    latent: int
    shown: list[Example]
    """For the explanation, strongest first."""
    scored: list[Example]
    """For the prediction, shuffled."""
    example_answer: str
    demos: bool = True

    @property
    def prediction_tokens(self) -> int:
        """Most tokens of a prediction."""
        return 2 * len(self.scored) + 5

    def explain(self) -> Messages:
        lines = "\n".join(f"{i}. {example.text(True)}" for i, example in enumerate(self.shown, 1))
        return _messages(
            EXPLAIN + (DEMOS if self.demos else NO_DEMOS), f"The activating documents are given below:\n\n{lines}"
        )

    def predict(self, explanation: str) -> Messages:
        lines = "\n".join(f"{i}. {example.text(False)}" for i, example in enumerate(self.scored, 1))
        user = f"Here is the explanation: this neuron fires on {explanation}.\n\nHere are the examples:\n\n{lines}"
        return _messages(PREDICT.format(n=len(self.scored), example=self.example_answer), user)

    def active(self) -> list[int]:
        return [i for i, example in enumerate(self.scored, 1) if example.active]


def _messages(system: str, user: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def evaluate(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: AutointerpConfig) -> dict[str, Result]:
    """Autointerp of SAEs of one hook on held-out text."""
    tokens_NL = shared.contexts(cfg.total_tokens // shared.data.context)
    answers = {name: Answers(shared.folders[name] / ANSWERS, cfg.model) for name in saes}
    results = evaluate_autointerp(saes, shared, tokens_NL, answers, print_line)
    for result in results.values():
        result.eval_config["dataset_name"] = shared.data.path or shared.data.name
    return results


def evaluate_autointerp(
    saes: Mapping[str, ExportedSAE],
    shared: Shared,
    tokens_NL: Tensor,
    answers: Mapping[str, Answers],
    report: Callable[[str], None],
) -> dict[str, Result]:
    """Autointerp of SAEs of one hook on contexts [N, L]; `report` is called with the estimate before any request.

    `answers` has the answers about each SAE that were received before, and stores new ones. Raises ConfigError without
    `eval.autointerp.judge` and, with the estimate, without `confirm`; NoNetwork where the judge cannot be reached.
    """
    cfg, seed = shared.cfg.autointerp, shared.cfg.seed
    judge = Judge(cfg)
    if tokens_NL.shape[1] <= 2 * cfg.buffer:
        raise ConfigError(
            f"eval.autointerp.buffer={cfg.buffer}: contexts of {tokens_NL.shape[1]} tokens leave no room; lower it."
        )
    if not cfg.top_scored + cfg.sampled_scored + cfg.random_scored:
        raise ConfigError("eval.autointerp.random_scored=0: no example is left to predict; give at least one.")
    tokens_NL = tokens_NL[: max(1, cfg.total_tokens // tokens_NL.shape[1])]
    counts = shared.firing_counts("autointerp: features", saes, tokens_NL, shared.cfg.llm_batch)
    latents = {name: chosen_latents(count_F.cpu(), cfg, seed) for name, count_F in counts.items()}
    values = activations_of(saes, latents, tokens_NL, shared)
    questions = {
        name: [
            question
            for i, latent in enumerate(latents[name])
            if (question := question_about(latent, values[name][..., i].float(), tokens_NL, shared, seed)) is not None
        ]
        for name in saes
    }
    n_requests, estimate = cost(questions, answers, cfg)
    if n_requests and not cfg.confirm:
        raise ConfigError(f"{estimate}; give eval.autointerp.confirm=true to send them.")
    report(estimate)
    out = {}
    for name, sae in saes.items():
        shared.begin("autointerp", len(questions[name]), "feature")
        answer = partial(_answered, judge=judge, answers=answers[name], cfg=cfg, shared=shared)
        with ThreadPoolExecutor(cfg.concurrency) as pool:
            answered = list(pool.map(answer, questions[name]))
        out[name] = result(name, sae, shared, latents[name], questions[name], answered, tokens_NL.shape[1])
    return out


def _answered(
    question: Question, judge: Judge, answers: Answers, cfg: AutointerpConfig, shared: Shared
) -> dict[str, Any] | None:
    """Explanation, prediction and score of one feature; None for an answer that cannot be read."""
    explanation = parse_explanation(answers.get(judge, question.explain(), cfg.max_tokens_in_explanation))
    if not cfg.scoring:
        shared.advance()
        return {"latent": question.latent, "explanation": explanation}
    predicted = parse_predictions(answers.get(judge, question.predict(explanation), question.prediction_tokens))
    shared.advance()
    if predicted is None:
        return None
    right = question.active()
    return {
        "latent": question.latent,
        "explanation": explanation,
        "predictions": predicted,
        "correct seqs": right,
        "score": mean((i in predicted) == (i in right) for i in range(1, len(question.scored) + 1)),
    }


def result(
    name: str,
    sae: ExportedSAE,
    shared: Shared,
    latents: list[int],
    questions: list[Question],
    answered: list[dict[str, Any] | None],
    context: int,
) -> Result:
    cfg = shared.cfg.autointerp
    kept = [found for found in answered if found is not None]
    scores = [found["score"] for found in kept if cfg.scoring]
    warnings = []
    if cfg.latents is None and len(latents) < cfg.n_latents:
        warnings.append(f"{len(latents)} features fire often enough, fewer than n_latents={cfg.n_latents}")
    if len(questions) < len(latents):
        warnings.append(f"{len(latents) - len(questions)} features have too few examples")
    if len(kept) < len(answered):
        warnings.append(f"{len(answered) - len(kept)} answers of the judge could not be read")
    metrics = {
        "autointerp_score": mean(scores) if scores else float("nan"),
        "autointerp_std_dev": stdev(scores) if len(scores) > 1 else float("nan"),
    }
    return shared.result(
        "autointerp", name, sae, eval_config(shared, context), {"autointerp": metrics},
        unstructured={str(one["latent"]): one for one in kept}, warnings=warnings, more={"judge": cfg.model},
    )  # fmt: skip


def chosen_latents(count_F: Tensor, cfg: AutointerpConfig, seed: int) -> list[int]:
    """Features that fire on more than `dead_below` tokens, `n_latents` of them drawn by the seed; or those given.

    Raises ConfigError for a feature that the SAE does not have.
    """
    if cfg.latents is not None:
        for latent in cfg.latents:
            if not 0 <= latent < len(count_F):
                raise ConfigError(f"eval.autointerp.latents={latent}: the SAE has features 0 to {len(count_F) - 1}.")
        return cfg.latents
    alive = (count_F > cfg.dead_below).nonzero()[:, 0].tolist()
    if len(alive) <= cfg.n_latents:
        return alive
    return sorted(random.Random(stream_seed(seed, "autointerp", "latents")).sample(alive, cfg.n_latents))


@torch.no_grad()
def activations_of(
    saes: Mapping[str, ExportedSAE], latents: dict[str, list[int]], tokens_NL: Tensor, shared: Shared
) -> dict[str, Tensor]:
    """The chosen features' activations [N, L, n], 0 at special tokens, bfloat16 as SAEBench keeps them."""
    # allocated once: joining parts would need twice the memory
    out = {name: torch.zeros(*tokens_NL.shape, len(chosen), dtype=torch.bfloat16) for name, chosen in latents.items()}
    done = 0
    shared.begin("autointerp: examples", len(tokens_NL), "context")
    for tokens_SL in tokens_NL.split(shared.cfg.llm_batch):
        plain_SL = is_plain(tokens_SL, shared.lm.special_ids).to(shared.device)
        x_SLD = shared.lm.activations(tokens_SL, shared.layer)
        for name, sae in saes.items():
            f_SLn = sae.encode(x_SLD)[..., latents[name]] * plain_SL[..., None]
            out[name][done : done + len(tokens_SL)] = f_SLn.to(torch.bfloat16).cpu()
        done += len(tokens_SL)
        shared.advance(len(tokens_SL))
    return out


def question_about(latent: int, a_NL: Tensor, tokens_NL: Tensor, shared: Shared, seed: int) -> Question | None:
    """Examples of one feature, drawn from its own streams; None where it has too few."""
    cfg = shared.cfg.autointerp
    buffer, n_top, n_sampled = cfg.buffer, cfg.top_shown + cfg.top_scored, cfg.sampled_shown + cfg.sampled_scored
    top = largest(a_NL, n_top, buffer, cfg.no_overlap)
    if len(top) < n_top:
        return None
    below = torch.where(a_NL >= a_NL[top[:, 0], top[:, 1]].min(), 0.0, a_NL)[:, buffer:-buffer]
    if int((below > 1e-6).sum()) < n_sampled:
        return None
    generator = stream(seed, "autointerp", "examples", str(latent))
    drawn = torch.empty(0, dtype=torch.long)
    if n_sampled:
        drawn = torch.multinomial(below.flatten().square(), n_sampled, generator=generator)
    width = below.shape[1]
    sampled = torch.stack([drawn // width, drawn % width + buffer], dim=1)
    n, length = a_NL.shape
    anywhere = torch.stack(
        [
            torch.randint(0, n, (cfg.random_scored,), generator=generator),
            torch.randint(buffer, length - buffer, (cfg.random_scored,), generator=generator),
        ],
        dim=1,
    )
    peak = max(float(a_NL[row, at - buffer : at + buffer + 1].max()) for row, at in top.tolist())

    def examples(places: Tensor, silent: bool = False) -> list[Example]:
        out = []
        for row, at in places.tolist():
            here = slice(at - buffer, at + buffer + 1)
            a = [0.0] * (2 * buffer + 1) if silent else a_NL[row, here].tolist()
            words = [shared.lm.tokenizer.decode([token]) for token in tokens_NL[row, here].tolist()]
            out.append(Example(words, a, cfg.act_threshold * peak))
        return out

    top = top[torch.randperm(len(top), generator=generator)]
    sampled = sampled[torch.randperm(len(sampled), generator=generator)]
    shown = examples(top[: cfg.top_shown]) + examples(sampled[: cfg.sampled_shown])
    scored = examples(top[cfg.top_shown :]) + examples(sampled[cfg.sampled_shown :]) + examples(anywhere, silent=True)
    rng = random.Random(stream_seed(seed, "autointerp", "order", str(latent)))
    rng.shuffle(scored)
    answer = sorted(rng.sample(range(1, len(scored) + 1), cfg.top_scored + cfg.sampled_scored))
    shown.sort(key=lambda example: -max(example.activations))
    return Question(latent, shown, scored, ", ".join(map(str, answer)), cfg.demos)


def largest(a_NL: Tensor, k: int, buffer: int, no_overlap: bool = True) -> Tensor:
    """Places [<= k, 2] (row, position) of the largest values, none within `buffer` of a row's end or, under
    `no_overlap`, of a larger one."""
    inner = a_NL[:, buffer:-buffer]
    width = inner.shape[1]
    taken: list[tuple[int, int]] = []
    for place in inner.flatten().argsort(descending=True, stable=True).tolist():
        row, at = place // width, place % width + buffer
        if inner[row, at - buffer] <= 0 or len(taken) == k:
            break
        if not no_overlap or all(row != other or abs(at - near) > buffer for other, near in taken):
            taken.append((row, at))
    return torch.tensor(taken, dtype=torch.long).view(-1, 2)


def parse_explanation(answer: str) -> str:
    return answer.split("activates on")[-1].rstrip(".").strip()


def parse_predictions(answer: str) -> list[int] | None:
    """The numbers in the answer, [] for the word None; None where the answer is neither."""
    parts = answer.strip().rstrip(".").replace("and", ",").replace("None", "").split(",")
    named = [part.strip() for part in parts if part.strip()]
    return [int(part) for part in named] if all(part.isdecimal() for part in named) else None


def missing(question: Question, answers: Answers, cfg: AutointerpConfig) -> list[tuple[Messages, int]]:
    """Requests about a feature that are still to be sent, each with the most tokens of its answer."""
    explain, allowed = question.explain(), cfg.max_tokens_in_explanation
    explanation = answers.known(explain, allowed)
    if explanation is None:
        return [(explain, allowed), (question.predict("x" * 100), question.prediction_tokens)][: 1 + cfg.scoring]
    predict = question.predict(parse_explanation(explanation))
    if not cfg.scoring or answers.known(predict, question.prediction_tokens) is not None:
        return []
    return [(predict, question.prediction_tokens)]


def cost(
    questions: Mapping[str, list[Question]], answers: Mapping[str, Answers], cfg: AutointerpConfig
) -> tuple[int, str]:
    """Requests to send, and the estimate in one line: a token for every four characters sent, and as many received as
    are allowed. Answers in the file cost nothing."""
    n = sum(map(len, questions.values()))
    requests = [one for name, several in questions.items() for q in several for one in missing(q, answers[name], cfg)]
    sent = sum(len(message["content"]) for messages, _ in requests for message in messages) / CHARS_PER_TOKEN
    received = sum(allowed for _, allowed in requests)
    dollars = (sent * cfg.price_in + received * cfg.price_out) / 1e6
    answered = (1 + cfg.scoring) * n - len(requests)
    before = f" ({answered:,} answered before)" if answered else ""
    return len(requests), (
        f"autointerp: {n:,} features of {len(questions)} SAEs, {len(requests):,} requests to {cfg.model} at {cfg.judge}"
        f"{before}, about {(sent + received) / 1e6:.2f} million tokens, ${dollars:.2f}"
    )


def eval_config(shared: Shared, context: int) -> dict[str, Any]:
    """By SAEBench's names."""
    cfg = shared.cfg.autointerp
    return {
        "model_name": shared.model_name,
        "n_latents": cfg.n_latents,
        "override_latents": cfg.latents,
        "dead_latent_threshold": cfg.dead_below,
        "random_seed": shared.cfg.seed,
        "dataset_name": "held-out text",
        "llm_context_size": context,
        "llm_batch_size": shared.cfg.llm_batch,
        "llm_dtype": shared.llm_dtype,
        "buffer": cfg.buffer,
        "no_overlap": cfg.no_overlap,
        "act_threshold_frac": cfg.act_threshold,
        "total_tokens": cfg.total_tokens,
        "scoring": cfg.scoring,
        "max_tokens_in_explanation": cfg.max_tokens_in_explanation,
        "use_demos_in_explanation": cfg.demos,
        "n_top_ex_for_generation": cfg.top_shown,
        "n_iw_sampled_ex_for_generation": cfg.sampled_shown,
        "n_top_ex_for_scoring": cfg.top_scored,
        "n_random_ex_for_scoring": cfg.random_scored,
        "n_iw_sampled_ex_for_scoring": cfg.sampled_scored,
    }


EVALUATION = Evaluation(
    "autointerp",
    evaluate,
    METRICS,
    reads=("seed", "autointerp"),
    no_effect=tuple(f"autointerp.{key}" for key in ("confirm", "price_in", "price_out", "concurrency", "api_key_env")),
)
