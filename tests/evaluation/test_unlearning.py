from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_lm import BOS, D_IN, VOCABULARY, ToyLM, toy_sae

from sae_sweeps.config.evaluations import EvalConfig, UnlearningConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import DataError
from sae_sweeps.evaluation.questions import Candidates, QuestionSet, answers_of, mcq_prompt, mcq_rows, padded
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.unlearning import (
    Setting,
    answered,
    candidates_for,
    evaluate_unlearning,
    firing_shares,
    joined,
    score,
    side_effects,
)


class Tokenizer:
    """Digits of base 9 behind the two special tokens; answers are tokens too."""

    eos_token, pad_token_id = "0", 1

    def __call__(self, texts, add_special_tokens=False, verbose=False):
        def ids(text):
            return [2 + int(char) % 9 for char in text if char.isdigit()] or [2 + ord(text.strip()) % 9]

        return {"input_ids": ids(texts) if isinstance(texts, str) else [ids(text) for text in texts]}

    def get_vocab(self):
        return {}


class LM(ToyLM):
    tokenizer, bos_id = Tokenizer(), BOS

    def tokenize_rows(self, texts, context):
        raise NotImplementedError


class Source:
    kind, digest, probing, tpp, pairs, hierarchies = "saebench", "toy", (), (), (), ()
    question_sets = ("bio", "other", "rest")

    def corpus(self, split):
        g = torch.Generator().manual_seed(int(split == "forget"))
        return ["".join(map(str, torch.randint(0, 9, (60,), generator=g).tolist())) for _ in range(20)]

    def corpus_size(self, contexts, context):
        return contexts, context

    def questions(self, lm, cfg, seed, sets):
        g = torch.Generator().manual_seed(4)
        made = []
        for name, forget, tail in (("bio", True, 0), ("other", False, 0), ("rest", False, 2)):
            rows = torch.randint(2, VOCABULARY, (160, 7), generator=g).tolist()
            rows = [[BOS, *row[: 4 + i % 3]] for i, row in enumerate(rows)]
            answers = torch.randint(0, 4, (160 if not tail else 40,), generator=g).tolist()
            asked = QuestionSet(name, forget, rows, answers, tail)
            made.append(Candidates(asked, asked, 1))
        return made


CFG = UnlearningConfig(
    retain_thresholds=[0.3, 0.9], n_features=[2, 5], multipliers=[1, 20], contexts=6, context=10, side_effect=0.5
)


@pytest.fixture
def shared(tmp_path):
    cfg = EvalConfig(unlearning=CFG, llm_batch=16, selection="test")
    return Shared(cfg, LM(), LayerConfig(index=0), "toy", "digest", Source(), tmp_path)


def test_every_setting_is_what_a_whole_forward_pass_gives(shared):
    """SAEBench: the hook clamps on every row; here only rows on which a chosen feature fires are run again."""
    sae = toy_sae(architecture="standard", d_sae=16)
    result = evaluate_unlearning({"it": sae}, shared, shared.cfg.unlearning)["it"]
    from sae_sweeps.evaluation.unlearning import corpus_tokens

    firing = {s: firing_shares({"it": sae}, corpus_tokens(shared, s), shared)["it"] for s in ("forget", "retain")}
    lm, questions = shared.lm, answered(shared)
    assert all(len(q.answers) > 3 for q in questions)
    seen = []
    for t in CFG.retain_thresholds:
        ranked = candidates_for(firing["forget"], firing["retain"], t)
        for n in CFG.n_features:
            chosen = torch.from_numpy(ranked[:n].copy())
            for m in CFG.multipliers:
                right = {True: [], False: []}
                for q in questions:
                    tokens, length = padded(q.rows)
                    x = lm.activations(tokens, LayerConfig())
                    f = sae.encode(x)
                    f[:, 0] = 0
                    clamped = f.clone()
                    clamped[..., chosen] = torch.where(f[..., chosen] > 0, -float(m), f[..., chosen])
                    changed = sae.decode(clamped) + (x - sae.decode(f))
                    given = answers_of(lm.resume(tokens, LayerConfig(), changed), tokens, length, q, lm)
                    right[q.forget] += (given == torch.tensor(q.answers)).tolist()
                name = Setting(t, len(chosen), m, 0, 0).name
                expected = {"forget": np.mean(right[True]), "side": np.mean(right[False])}
                assert result.unstructured[name] == pytest.approx(expected), name
                seen.append(expected["forget"])
    assert min(seen) < 1
    allowed = [s["forget"] for s in result.unstructured.values() if s["side"] >= 0.5]
    assert result.metrics["unlearning"]["unlearning_score"] == pytest.approx(1 - min(allowed, default=1.0))


def test_one_half_of_the_questions_chooses_the_setting_that_the_other_measures(shared):
    saes = {"it": toy_sae(architecture="standard", d_sae=16)}
    whole = evaluate_unlearning(saes, shared, shared.cfg.unlearning)["it"]
    shared.cfg.selection = "validation"
    halved = evaluate_unlearning(saes, shared, shared.cfg.unlearning)["it"]
    assert halved.unstructured == whole.unstructured  # shares of every setting are of all questions
    assert halved.metrics["unlearning"]["unlearning_score"] < whole.metrics["unlearning"]["unlearning_score"]
    a = Setting(0.1, 1, 1, 0.4, 1.0, ((0.2, 1.0), (0.6, 1.0)))
    b = Setting(0.1, 2, 1, 0.5, 1.0, ((0.7, 1.0), (0.3, 1.0)))
    assert score([a, b], UnlearningConfig()) == pytest.approx(1 - (0.6 + 0.7) / 2)
    assert score([a, replace(b, halves=((0.7, 1.0), (0.3, 0.5)))], UnlearningConfig()) == pytest.approx(1 - 0.4)
    none = replace(a, halves=((0.2, 1.0), (0.6, 0.5)))
    assert score([none], UnlearningConfig()) == pytest.approx(1 - (0.6 + 1.0) / 2)
    assert "no setting leaves 99% of the other answers of one half right" in side_effects([none], UnlearningConfig())[0]


def test_no_signal_in_the_settings_gives_no_unlearning():
    """Answers that stay right or not by chance, 16 settings: the best of them, chosen and measured on the same 100
    questions, looks like unlearning."""
    rng = np.random.default_rng(0)
    by_way = {"test": [], "validation": []}
    for _ in range(300):
        right = rng.random((16, 100)) < 0.9
        parts = [(right[:, ::2].mean(1), right[:, 1::2].mean(1)), right.mean(1)]
        halved = [Setting(0.1, 1, m, 0, 1, ((parts[0][0][m], 1.0), (parts[0][1][m], 1.0))) for m in range(16)]
        whole = [Setting(0.1, 1, m, parts[1][m], 1.0) for m in range(16)]
        by_way["test"].append(score(whole, UnlearningConfig()))
        by_way["validation"].append(score(halved, UnlearningConfig()))
    assert abs(z(by_way["validation"], 0.1)) < 4 < z(by_way["test"], 0.1)


def z(values, expected):
    """Distance of the mean from what is expected, in standard errors."""
    return (np.mean(values) - expected) / (np.std(values, ddof=1) / np.sqrt(len(values)))


def test_only_questions_that_are_answered_right_count(shared):
    for q in answered(shared):
        tokens, length = padded(q.rows)
        hidden = shared.lm.resume(tokens, shared.layer, shared.lm.activations(tokens, shared.layer))
        assert answers_of(hidden, tokens, length, q, shared.lm).tolist() == q.answers and len(q.rows) == len(
            q.answers
        ) * (4 if q.tail else 1)


def test_firing_shares_and_the_choice_of_features(shared):
    sae = toy_sae(architecture="standard")
    tokens = torch.randint(0, VOCABULARY, (5, 8), generator=torch.Generator().manual_seed(0))
    plain = tokens > 1
    fires = sae.encode(shared.lm.activations(tokens, LayerConfig())[plain]) > 0
    found = firing_shares({"it": sae}, tokens, shared)["it"]
    assert found == pytest.approx(fires.double().mean(0).numpy(), abs=1e-6)
    forget, retain = np.array([0.5, 0.2, 0.9, 0.0]), np.array([0.0, 0.005, 0.5, 0.0])
    assert candidates_for(forget, retain, 0.01).tolist() == [0, 1] and candidates_for(
        forget, retain, 0.001
    ).tolist() == [0]


def test_scores_without_a_setting_that_is_allowed():
    cfg = UnlearningConfig()
    assert np.isnan(score([], cfg))
    assert score([Setting(0.01, 10, 25, 0.2, 0.5)], cfg) == 0.0
    assert score([Setting(0.01, 10, 25, 0.4, 0.995), Setting(0.01, 10, 50, 0.1, 0.5)], cfg) == pytest.approx(0.6)


def test_a_model_that_answers_nothing_right_is_told_of(shared):
    shared.source.questions = lambda lm, cfg, seed, sets: [
        Candidates(QuestionSet(name, forget, [], []), QuestionSet(name, forget, [], []), 1)
        for name, forget in (("bio", True), ("other", False))
    ]
    result = evaluate_unlearning({"it": toy_sae(architecture="standard")}, shared, shared.cfg.unlearning)["it"]
    assert len(result.warnings) == 2 and "answers none of the questions" in result.warnings[0]
    assert result.to_json()["eval_result_metrics"]["unlearning"]["unlearning_score"] == -1


def test_contexts_begin_with_bos_and_text_too_short_is_refused():
    rows = joined(["123456", "345", "678"], Tokenizer(), 4, BOS)
    assert rows.shape[1] == 4 and (rows[:, 0] == BOS).all()
    with pytest.raises(DataError, match="does not fill one context of 500"):
        joined(["12"], Tokenizer(), 500, BOS)


def test_prompts_are_saebenchs():
    class Gemma(Tokenizer):
        def get_vocab(self):
            return {"<start_of_turn>": 7}

    text = mcq_prompt("What?", ["w", "x", "y", "z"], "biology", Gemma())
    assert text == (
        "<bos><start_of_turn>user\nThe following are multiple choice questions (with answers) about biology.\nWhat?\n"
        "A. w\nB. x\nC. y\nD. z<end_of_turn>\n<start_of_turn>model\nAnswer: ("
    )
    assert mcq_prompt("What?", ["w", "x", "y", "z"], "biology", Tokenizer()).endswith("D. z\nAnswer:")
    questions = [{"question": "12", "choices": ["3", "4", "5", "6"], "answer": 2}]
    rows, answers = mcq_rows(questions, "x", LM(), all_orders=True)
    assert len(rows) == 24 and answers[0] == 2 and sorted(answers) == sorted([0, 1, 2, 3] * 6)
    assert rows[0][0] == BOS and D_IN
