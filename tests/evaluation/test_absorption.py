import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bounds import Rounding
from torch.nn.functional import cosine_similarity
from toy_lm import D_IN, toy_sae

from sae_sweeps.config.evaluations import AbsorptionConfig, EvalConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import ConfigError
from sae_sweeps.evaluation.absorption import NAMES, LetterAbsorption, absorbed, examples, split_features, summary
from sae_sweeps.evaluation.draws import stream, stream_seed
from sae_sweeps.evaluation.first_letters import (
    at_words,
    f1_score,
    letter_of,
    letter_probe,
    prompt,
    right_words,
    vocabulary,
)
from sae_sweeps.evaluation.shared import Shared


def one_word(sae, x, direction, split):
    """SAEBench's loop body: absorption fraction and full absorption of one word."""
    u = direction / direction.norm()
    cos = torch.nn.functional.cosine_similarity(u, sae.weights["W_dec"], dim=-1)
    f = sae.encode(x[None])[0]
    p = f * cos
    total = float(x @ u)
    own = float(p[split].sum())
    mask = torch.ones(len(p), dtype=torch.bool)
    mask[split] = False
    mask &= (cos >= 0.1) & (p > 0)
    candidates = p[mask]
    absorbers = float(candidates.topk(min(3, candidates.numel())).values.sum())
    if own >= total or absorbers / total < 0.4:
        fraction = 0.0
    elif own <= 0:
        fraction = 1.0
    else:
        taken = min(absorbers, total - own)
        fraction = min(max(taken / (taken + own), 0.0), 1.0)
    top = int(p.argmax())
    full = all(float(f[j]) < 1e-8 for j in split) and float(cos[top]) >= 0.025 and total >= 0
    return fraction, full and float(p[top]) / total >= 0.4


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_absorption_is_saebenchs_word_by_word(architecture):
    sae = toy_sae(architecture=architecture, d_sae=24)
    g = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(400, D_IN, generator=g, dtype=torch.float64)
    seen = set()
    for letter in range(4):
        direction = torch.randn(D_IN, generator=g, dtype=torch.float64)
        split = torch.randperm(24, generator=g)[: letter + 1].tolist()
        positive = x[x @ direction > 0]
        with Rounding() as rounding:
            fraction, full = absorbed(sae.to(dtype=torch.float32), positive.float(), direction.float(), split)
        expected = [one_word(sae, word, direction, split) for word in positive]
        rounding.assert_close([e[0] for e in expected], fraction, factor=2)  # the first has inputs that did not round
        assert full.tolist() == [e[1] for e in expected]
        letters = SimpleNamespace(
            words_x_ND=positive.float(),
            weight_26D=direction.float()[None].expand(4, -1),
            words=list(map(str, range(400))),
        )
        shown = examples(sae.to(dtype=torch.float32), letters, letter, full, split)
        assert [int(one["word"]) for one in shown] == full.nonzero()[:, 0].tolist()
        for one in shown:
            p = sae.encode(positive[int(one["word"])]) * cosine_similarity(direction, sae.weights["W_dec"], dim=-1)
            assert one["features"] == split and one["absorber"] == int(p.argmax()) not in split and one["share"] >= 0.4
        seen |= {round(e[0], 1) for e in expected} | {f"full {e[1]}" for e in expected}
    assert {0.0, 1.0, "full True", "full False"} <= seen and len(seen) > 6  # every branch was met


def test_split_features_stop_when_f1_stops_rising():
    g = torch.Generator().manual_seed(0)
    letters = torch.arange(600) % 3
    f = torch.rand(600, 6, generator=g) * 0.1
    half = torch.rand(600, generator=g) < 0.5
    f[(letters == 0) & half, 2] += 1  # the letter's own two features, each on a part of its words
    f[(letters == 0) & ~half, 4] += 1
    weight = torch.tensor([0.1, 0.0, 3.0, 0.2, 2.0, 0.05])
    cfg = AbsorptionConfig(max_k=4)
    assert split_features(0, weight, (f, letters), (f, letters), cfg) == [2, 4]
    assert split_features(0, weight, (f, letters), (f, letters), AbsorptionConfig(max_k=1)) == [2]


def test_summary_and_its_undefined_cases():
    assert all(math.isnan(value) for value in summary([]).values())
    one, two = LetterAbsorption(0, 1, 0.5, 1, 4), LetterAbsorption(3, 2, 0.1, 2, 4)
    found = summary([one, two])
    assert list(found) == list(NAMES) and found["mean_full_absorption_score"] == pytest.approx(0.375)
    assert found["std_dev_num_split_features"] == pytest.approx(math.sqrt(0.5))
    assert math.isnan(summary([one])["std_dev_full_absorption_score"])
    assert two.detail()["first_letter"] == "d" and two.detail()["full_absorption_rate"] == 0.5


class Tokenizer:
    """Splits at blanks and at nothing else; a leading blank belongs to the word."""

    def __init__(self):
        self.seen = {}

    def __call__(self, texts, add_special_tokens=False):
        def ids(text):
            words = text.replace(":", " :").replace("\n", " \n ").split(" ")
            return [self.seen.setdefault(word, len(self.seen) + 2) for word in words if word]

        return {"input_ids": ids(texts) if isinstance(texts, str) else [ids(text) for text in texts]}

    def get_vocab(self):
        return {"Ġtree": 3, "cat": 1, "▁dog": 2, "c3": 4, "!": 5, "A": 0, "": 6}

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("Ġ", " ").replace("▁", "")


def test_words_are_sorted_and_letters_only():
    assert vocabulary(Tokenizer()) == [" dog", " tree", "A", "cat"]
    assert vocabulary(Tokenizer(), commonest=2) == ["A", "cat"]
    assert [letter_of(word) for word in (" dog", "A", "cat")] == [3, 0, 2]


def test_a_prompt_shows_ten_others_and_the_activation_is_the_words():
    words = [f"w{chr(97 + i)}" for i in range(20)]
    template = AbsorptionConfig().template
    text = prompt(template, "wa", words, random.Random(0))
    lines = text.split("\n")
    assert lines[0] == "" and len(lines) == 12 and lines[-1] == "wa has the first letter:" and "wa" not in lines[1:-1]
    assert lines[1].endswith(" W") and text == prompt(template, "wa", words, random.Random(0))
    assert text != prompt(template, "wa", words, random.Random(1))

    class LM:
        tokenizer, bos_id, device = Tokenizer(), 0, torch.device("cpu")

        def activations(self, tokens_SL, layer):
            return tokens_SL[..., None].float()

    def found(**changes):
        cfg = EvalConfig(absorption=AbsorptionConfig(**changes))
        shared = Shared(cfg, LM(), LayerConfig(), "toy", "toy", None, Path())
        return at_words([text, "wb has the first letter:"], shared)[:, 0].tolist()

    seen = LM.tokenizer.seen
    assert found() == found(token_pos=-6) == [seen["wa"], seen["wb"]]
    assert found(token_pos=-1) == [seen[":"], seen[":"]]
    for position in (0, 3, -8):
        with pytest.raises(ConfigError, match=f"eval.absorption.token_pos={position}: must be a token from the end, "):
            found(token_pos=position)


def saebenchs_probe(x, letters, seed, l1, weight_decay, batch_size=16, epochs=6):
    """nn.Linear trained as SAEBench trains it, rows in the order of one stream."""
    torch.manual_seed(seed)
    y = torch.nn.functional.one_hot(letters, 26).to(x.dtype)
    probe = torch.nn.Linear(x.shape[1], 26)
    loss_fn = torch.nn.BCEWithLogitsLoss(pos_weight=(len(y) - y.sum(0)) / y.sum(0))
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.01, weight_decay=weight_decay)
    gamma = math.exp(math.log(1e-5 / 0.01) / epochs)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=gamma)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            loss = loss_fn(probe(x[rows]), y[rows]) + l1 * probe.weight.abs().sum(-1).mean()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return probe.weight.detach(), probe.bias.detach()


@pytest.mark.parametrize(("l1", "weight_decay"), [(0.0, 1e-4), (0.01, 1e-6)])
def test_the_letter_probe_is_saebenchs(in_float64, l1, weight_decay):
    g = torch.Generator().manual_seed(0)
    letters = torch.cat([torch.arange(26), torch.randint(0, 26, (50,), generator=g)])
    x = torch.randn(76, 8, generator=g)
    how = dict(batch_size=16, epochs=6, weight_decay=weight_decay, l1=l1)
    weight, bias = letter_probe(x, letters, stream(0, "p"), **how)
    expected_weight, expected_bias = saebenchs_probe(x, letters, stream_seed(0, "p"), l1, weight_decay)
    torch.testing.assert_close(weight, expected_weight, rtol=1e-9, atol=1e-11)  # Adam's steps, in float64
    torch.testing.assert_close(bias, expected_bias, rtol=1e-9, atol=1e-11)
    again, _ = letter_probe(x, letters, stream(0, "p"), **how)
    other, _ = letter_probe(x, letters, stream(1, "p"), **how)
    assert torch.equal(weight, again) and not torch.equal(weight, other)


def test_words_that_the_probe_gets_right():
    right = torch.full((4, 26), -1.0)
    right[[0, 1, 3], [1, 0, 0]] = 1
    assert right_words(right, ["b", "a", "c", "a"]) == [1, 3, 0]
    assert f1_score(torch.tensor([False]), torch.tensor([False])) == 0.0
    assert f1_score(torch.tensor([True, True, False]), torch.tensor([True, False, True])) == pytest.approx(0.5)
