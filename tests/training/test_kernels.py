"""Steps of training by the fast kernels beside those by the plain dense formulas."""

import pytest
import torch
from composed import BATCH, D_IN, batch_at, configured

from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels import sparse_numba
from sae_sweeps.training.step import Training


def trained(words, kernels, steps=12):
    run = configured(*words.split(), f"train.kernels={kernels}", "train.dead_after_tokens=128")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    rows = [training.step(batch_at(step), step, True, True).numbers for step in range(steps)]
    return training, rows


STEPS = [
    "architecture=topk k=4",
    "architecture=topk k=40 k_start=4 architecture.aux_weight=1",
    "architecture=topk k=4 penalty=ortho+contrastive+bottleneck",
    "architecture=topk k=4 penalty=decorrelation group_layer=groups group_layer.group_size=8 group_layer.dropout=0.2",
    "architecture=topk k=4 group_layer=groups group_layer.group_size=8 group_layer.residual=0.2",
    "architecture=batch_topk k=4",
    "architecture=matryoshka k=4",
    "architecture=standard l1_penalty=0.3",
    "architecture=p_anneal l1_penalty=0.3",
    "architecture=gated l1_penalty=0.3",
    "architecture=jumprelu target_l0=4",
]


@pytest.mark.parametrize("words", STEPS)
def test_whole_steps_equal_those_of_the_plain_formulas(words, monkeypatch):
    monkeypatch.setattr(sparse_numba, "SPARSE_UP_TO", 1.0)  # so that ReLU's way is taken from the first step
    fast, fast_rows = trained(words, "auto")
    plain, plain_rows = trained(words, "reference")
    assert fast.sae.kernels is not None and plain.sae.kernels is None
    for mine, theirs in zip(fast_rows, plain_rows, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3, abs=1e-5)
    for (name, mine), (_, theirs) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def curves_of_300_steps(*words):
    """The losses by the fast kernels, and by the plain formulas."""
    for kernels in ("auto", "reference"):
        run = configured(*words, f"train.kernels={kernels}", f"num_tokens={300 * BATCH}")
        training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
        yield [training.step(batch_at(step), step, True).numbers["loss"] for step in range(300)]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["architecture=topk k=4 penalty=ortho", "architecture=batch_topk k=4"])
def test_the_loss_of_300_steps_is_that_of_the_plain_formulas(words):
    fast, plain = curves_of_300_steps(*words.split())
    assert fast == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("words", STEPS)
def test_in_float64_300_steps_of_every_kind_are_those_of_the_plain_formulas(words):
    """Without float32's rounding no k-th largest feature changes places, so that nothing hides a wrong formula."""
    fast, plain = curves_of_300_steps(*words.split(), "train.precision=float64")
    assert fast == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_bfloat16_selects_and_float32_computes(architecture):
    """The values are exact, and so are their gradients; the features are those of the product in bfloat16."""
    run = configured(f"architecture={architecture}", "k=4", "train.selection=bfloat16", "architecture.aux_weight=0")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    sae, batch = training.sae, batch_at(0)
    terms = training.forward(batch, 0)
    f = terms.ctx.feature_acts.dense()
    z = sae.pre_activations(batch.x)
    torch.testing.assert_close(f, torch.where(f > 0, z, 0.0), rtol=1e-5, atol=1e-5)
    coarse = (batch.x.bfloat16() @ sae.W_enc.bfloat16() + sae.b_enc.bfloat16()).float()
    if architecture == "topk":
        assert bool((coarse[f > 0] >= coarse.topk(4).values[:, -1:].expand_as(f)[f > 0]).all())
    grads = torch.autograd.grad(terms.loss, list(sae.parameters()))
    x_hat = torch.where(f.detach() > 0, z, 0.0) @ sae.W_dec + sae.b_dec
    expected = torch.autograd.grad((x_hat - batch.x).square().sum(1).mean(), list(sae.parameters()))
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("words", ["architecture=standard", "train.kernels=reference"])
def test_bfloat16_selection_needs_something_to_select(words):
    with pytest.raises(ConfigError, match="train.selection=bfloat16"):
        configured("train.selection=bfloat16", words)
