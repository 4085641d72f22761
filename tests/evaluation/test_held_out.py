"""Held-out fvu in training is core's: exactly on all of core's tokens, and an estimate of it on a sample of them."""

import math

import pytest
import torch
from bounds import close, gamma
from toy_lm import BOS, D_IN, PAD, ToyLM, toy_sae, toy_tokens

from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig, ModelConfig
from sae_sweeps.evaluation.core import evaluate_activations, evaluate_core
from sae_sweeps.evaluation.held_out import sample
from sae_sweeps.runs.evaluate import held_out_activations
from sae_sweeps.runs.session import RunSession

CPU, SAE = torch.device("cpu"), toy_sae()
BOTH = ("fvu", "fvu_per_token")


def activations(n: int, n_long: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, D_IN, generator=generator) + 1
    x[torch.randperm(n, generator=generator)[:n_long]] *= 100
    return x


@pytest.mark.parametrize("limit", [None, 50.0])
def test_on_all_tokens_it_is_what_core_measures(limit):
    x = activations(900, n_long=4)
    sae = toy_sae()
    sae.metadata = {} if limit is None else {"norm_limit": limit}
    core = evaluate_activations({"it": sae}, x.split(300))["it"].metrics
    found = sample(x, 900, CPU, limit).measure(sae)
    assert set(found) == set(BOTH)
    for name in BOTH:
        close(found[name], core[name], 4 * (900 + D_IN + 9) + 20, name=name)


def test_a_sample_holds_the_tokens_with_the_most_variance_and_counts_the_others_for_the_rest():
    """Against the same sum written out, with the rest taken evenly."""
    x = activations(1000, n_long=3)
    held = sample(x, 100, CPU)
    mean = x.double().mean(0)
    variance = (x.double() - mean).square().sum(1)
    order = sorted(range(1000), key=lambda i: -variance[i])
    top, rest = order[:50], sorted(order[50:])
    picked = [(i, 1.0) for i in top] + [(rest[j * len(rest) // 50], len(rest) / 50) for j in range(50)]
    assert len(held.x) == 100 and float(held.weight.sum()) == 1000
    error = {i: float((SAE.decode(SAE.encode(x[i].double())) - x[i].double()).square().sum()) for i, _ in picked}
    wanted = {
        "fvu": math.fsum(w * error[i] for i, w in picked) / math.fsum(variance.tolist()),
        "fvu_per_token": math.fsum(w * error[i] / float(variance[i]) for i, w in picked) / 1000,
    }
    found = held.measure(SAE)
    for name in BOTH:
        close(found[name], wanted[name], 4 * (1000 + D_IN + 9) + 20, name=name)


def test_a_few_tokens_with_most_of_the_variance_do_not_make_it_another_number():
    """Where 100 tokens taken evenly are far from the whole."""
    x = activations(5000, n_long=4)
    whole, found = sample(x, 5000, CPU).measure(SAE), sample(x, 100, CPU).measure(SAE)
    evenly = sample(x[::50], 100, CPU).measure(SAE)
    for name in BOTH:
        assert found[name] == pytest.approx(whole[name], rel=0.1), name
    assert abs(evenly["fvu"] / whole["fvu"] - 1) > 0.5


def test_a_token_at_the_mean_has_no_share():
    x = torch.tensor([[1.0] * D_IN, [-1.0] * D_IN, [0.0] * D_IN])
    found = sample(x, 3, CPU).measure(SAE)["fvu_per_token"]
    shares = [float((SAE.decode(SAE.encode(row.double())) - row).square().sum() / D_IN) for row in x[:2]]
    assert found == pytest.approx(sum(shares) / 2, rel=gamma(50))


class Session(RunSession):
    """Of a toy model and some contexts."""

    tokens_NL = torch.empty(0)

    def held_out(self, run, n_contexts):
        return self.tokens_NL[:n_contexts]

    def language_model(self, run, digest):
        lm = ToyLM()
        lm.activations_at = lambda tokens_SL, layers: [lm.activations(tokens_SL, layer) for layer in layers]
        return lm


@pytest.mark.parametrize("n_contexts", [20, 7, 2, 1])
def test_the_tokens_are_those_of_core_and_of_a_short_text_too(n_contexts, monkeypatch):
    """Contexts after those of CE and KL, without special tokens; of two layers, from one pass."""
    monkeypatch.setattr("sae_sweeps.runs.evaluate.canonical", lambda run: {"model": {"digest": "toy"}})
    session = Session(CPU)
    session.tokens_NL = toy_tokens(n_contexts)

    class run:
        model, eval = ModelConfig(), EvalConfig(batch_size=2, recon_batches=3, sparsity_batches=6)

    one, other = held_out_activations(run, [LayerConfig(index=0), LayerConfig(index=1)], session)
    assert torch.equal(one, other)
    used = {20: slice(6, 18), 7: slice(2, 6), 2: slice(1, 2), 1: slice(0, 1)}[n_contexts]
    tokens = session.tokens_NL[used]
    assert torch.equal(one, ToyLM().activations(tokens, LayerConfig())[(tokens != BOS) & (tokens != PAD)])
    if n_contexts > 1:
        core = evaluate_core({"it": SAE}, run.eval, ToyLM(), LayerConfig(index=0), session.tokens_NL)["it"]
        found = sample(one, len(one), CPU).measure(SAE)["fvu"]
        n = 4 * (200 + D_IN + 9) + 20  # the sample is in float32, the toy in float64
        close(found, core.metrics["fvu"], n, torch.float32, magnitude=1 + core.metrics["fvu"])
