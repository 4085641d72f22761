"""Steps of training by the fast kernels beside those by the plain dense formulas."""

import copy

import pytest
import torch
from bounds import Rounding, product_bound
from composed import BATCH, D_IN, batch_at, configured

from sae_sweeps.config.identity import run_id
from sae_sweeps.errors import ConfigError
from sae_sweeps.kernels import choose, selection, sparse_numba
from sae_sweeps.kernels.selection import Selection
from sae_sweeps.training.step import Training


def trained(words, kernels, steps=12):
    run = configured(
        *words.split(), f"train.kernels={kernels}", "train.dead_after_tokens=128", "train.precision=float64"
    )
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
def test_loss_and_gradients_equal_those_of_the_plain_formulas(words, monkeypatch):
    """At steps 0 and 8 of a run, from one state, within the rounding of the plain formulas."""
    monkeypatch.setattr(sparse_numba, "SPARSE_UP_TO", 1.0)  # so that ReLU's way is taken from the first step
    fast, _ = trained(words, "auto", 0)
    for step in range(9):
        if step % 8 == 0:
            copy, plain = (trained(words, kernels, 0)[0] for kernels in ("auto", "reference"))
            for training in (copy, plain):
                for name, module in training.modules().items():
                    module.load_state_dict(fast.modules()[name].state_dict())
            found, rounding = loss_and_gradients(copy, step), Rounding()
            with rounding:
                expected = loss_and_gradients(plain, step)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                rounding.assert_close(found[name], value, factor=2, name=f"{name} at step {step}", terms=1e-3)
        fast.step(batch_at(step), step)


def loss_and_gradients(training, step):
    """The loss and its weighted parts, and the gradient on each parameter that has one."""
    terms, parameters = training.forward(batch_at(step), step), dict(training.named_parameters())
    grads = torch.autograd.grad(terms.loss, list(parameters.values()), allow_unused=True)
    parts = {name: torch.as_tensor(value * weight) for name, (value, weight) in terms.parts.items()}
    found = parts | {"loss": terms.loss} | dict(zip(parameters, grads, strict=True))
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("words", [STEPS[1], *STEPS[5:]])
def test_what_a_gpu_computes_equals_the_plain_formulas(words, kernels, monkeypatch):
    """The formulations whose sizes do not depend on the batch's numbers, on the CPU: loss and gradients from one state
    at steps 0 and 8, with features dead at the latter, and twelve whole steps as below."""
    plain, plain_rows = trained(words, "reference")
    state = {name: copy.deepcopy(module.state_dict()) for name, module in plain.modules().items()}
    expected = []
    for step in (0, 8):
        rounding, one = Rounding(), trained(words, "reference", 0)[0]
        for name, module in one.modules().items():
            module.load_state_dict(state[name])
        if step:
            one.sae.tokens_since_fired[::3] = 10**6
        with rounding:
            expected.append((loss_and_gradients(one, step), rounding))
    monkeypatch.setattr(choose, "asynchronous", lambda tensor: True)
    for step, (wanted, rounding) in zip((0, 8), expected, strict=True):
        one = trained(words, kernels, 0)[0]
        for name, module in one.modules().items():
            module.load_state_dict(state[name])
        if step:
            one.sae.tokens_since_fired[::3] = 10**6
        found = loss_and_gradients(one, step)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            rounding.assert_close(found[name], value, factor=2, name=f"{name} at step {step}", terms=1e-3)
    fast, rows = trained(words, kernels)
    for mine, theirs in zip(rows, plain_rows, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    for (name, mine), (_, theirs) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("words", STEPS)
def test_whole_steps_equal_those_of_the_plain_formulas(words, monkeypatch):
    """Steps compound, and a bound that holds for all would prove nothing. In float64 what rounding makes of twelve
    stays below 1e-9 (1e-12 was measured) as long as no feature changes places; a wrong term shows above 1e-6."""
    monkeypatch.setattr(sparse_numba, "SPARSE_UP_TO", 1.0)
    fast, fast_rows = trained(words, "auto")
    plain, plain_rows = trained(words, "reference")
    assert fast.sae.kernels is not None and plain.sae.kernels is None
    for mine, theirs in zip(fast_rows, plain_rows, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    for (name, mine), (_, theirs) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("words", STEPS)
def test_300_steps_are_those_of_the_plain_formulas(words):
    """In float64, as above: in float32 a k-th largest feature changes places sooner or later, and the runs part."""
    losses = []
    for kernels in ("auto", "reference"):
        length = ["train.precision=float64", f"num_tokens={300 * BATCH}"]
        run = configured(*words.split(), f"train.kernels={kernels}", *length)
        training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
        losses.append([training.step(batch_at(step), step, True).numbers["loss"] for step in range(300)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("architecture", ["topk", "batch_topk"])
def test_bfloat16_selects_and_float32_computes(architecture):
    """The values are exact, and so are their gradients; the features are those of the product in bfloat16."""
    run = configured(f"architecture={architecture}", "k=4", "train.selection=bfloat16", "architecture.aux_weight=0")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    sae, batch = training.sae, batch_at(0)
    terms = training.forward(batch, 0)
    f = terms.ctx.feature_acts.dense()
    grads = torch.autograd.grad(terms.loss, list(sae.parameters()))
    x, exact = batch.x.double(), {n: p.detach().double().requires_grad_() for n, p in sae.named_parameters()}
    rounding = Rounding(torch.float32)
    with rounding:
        z = (x - exact["b_dec"]) @ exact["W_enc"] + exact["b_enc"]
        kept = torch.where(f.detach() > 0, z, 0.0)
        error = kept @ exact["W_dec"] + exact["b_dec"] - x
        expected = torch.autograd.grad(error.square().sum(1).mean(), list(exact.values()))
    if architecture == "topk":  # those kept are among the largest but for what bfloat16 makes of z
        coarse = product_bound(x, exact["W_enc"], torch.bfloat16, more=3).detach()
        assert bool(((z + coarse)[f > 0] >= (z - coarse).topk(4).values[:, -1:].expand_as(f)[f > 0]).all())
    rounding.assert_close(f, kept)
    for grad, expected_grad in zip(grads, expected, strict=True):
        rounding.assert_close(grad, expected_grad)


@pytest.mark.parametrize("words", ["architecture=standard", "train.kernels=reference"])
def test_bfloat16_selection_needs_something_to_select(words):
    with pytest.raises(ConfigError, match="train.selection=bfloat16"):
        configured("train.selection=bfloat16", words)


@pytest.mark.slow
@pytest.mark.parametrize("architecture, block", [("topk", 0), ("topk", 16), ("batch_topk", 16), ("matryoshka", 0)])
def test_300_steps_of_a_bounded_selection_choose_what_the_plain_formulas_choose(architecture, block):
    """In float32, at each step from the same weights: the same features, but where two z are equal but for rounding."""
    words = [f"architecture={architecture}", "k=4", f"num_tokens={300 * BATCH}", "train.dead_after_tokens=128"]
    run = configured(*words, "train.selection=bounded")
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"), Selection("bounded", block))
    assert training.sae.selection.way == "bounded"
    for step in range(300):
        sae, x = training.sae, batch_at(step).x
        with torch.no_grad():
            z = (x - sae.b_dec).double() @ sae.W_enc.double() + sae.b_enc.double()
            off = product_bound(x - sae.b_dec, sae.W_enc, torch.float32, more=2)
            f = sae.encode(x, step)[1].dense()
        chosen = f > 0
        assert ((f.double() - z).abs() <= off)[chosen].all()
        if architecture == "topk":
            least = (z - off).topk(4).values[:, -1:].clamp(min=0)
            assert (chosen.sum(1) <= 4).all()
        else:
            least = (z - off).flatten().topk(4 * BATCH).values[-1].clamp(min=0)
            assert chosen.sum() <= 4 * BATCH
        assert ((z + off)[chosen] >= least.expand_as(z)[chosen]).all()
        training.step(batch_at(step), step)


def test_the_way_of_a_run_is_chosen_where_it_may_pay(monkeypatch):
    def way(*words):
        return Training(configured("k=4", *words), 1.0, torch.zeros(D_IN), torch.device("cpu")).sae.selection.way

    times = iter([2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(selection, "_seconds", lambda work, n_tokens: next(times))
    assert way("architecture=topk") == "plain" and next(times) == 2.0  # too small a product to measure
    times = iter([2.0, 1.0])
    monkeypatch.setattr(selection, "LEAST", 1)
    monkeypatch.setattr(selection, "_measured", {})
    assert way("architecture=topk") == way("architecture=batch_topk") == "bounded"  # measured once
    times = iter([1.0, 2.0])
    monkeypatch.setattr(selection, "_measured", {})
    assert way("architecture=topk", "train.selection=exact") == "plain"
    for words in (["train.precision=float64"], ["train.kernels=reference"], ["train.selection=plain"]):
        assert way("architecture=topk", *words) == "plain"


def test_the_way_is_no_part_of_the_run_id():
    ids = {run_id(configured("k=4", f"train.selection={way}")) for way in ("auto", "plain", "bounded", "exact")}
    assert len(ids) == 1 and run_id(configured("k=4", "train.selection=bfloat16")) not in ids


@pytest.mark.parametrize(
    "words", ["architecture=standard", "train.kernels=reference", "train.precision=float64", "train.matmul=tf32"]
)
def test_bounded_selection_needs_what_it_bounds(words):
    key = words.partition("=")[0]
    with pytest.raises(ConfigError, match=f"train.selection=bounded: .*{key}"):
        configured("train.selection=bounded", words)
