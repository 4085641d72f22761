import math
from dataclasses import replace

import pytest
import torch
from bounds import Rounding, assert_within, close, gamma
from composed import D_IN, configured
from composed import batch_at as composed_batch_at
from toy import Toy, ToyConfig, batch_at, register_toy, run_config

from sae_sweeps.architectures.standard import StandardConfig
from sae_sweeps.architectures.topk import TopKConfig
from sae_sweeps.errors import Diverged
from sae_sweeps.penalties.ortho import OrthoConfig
from sae_sweeps.training.start import activation_scale, decoder_bias, geometric_median
from sae_sweeps.training.step import Training

TOPK = TopKConfig("topk", 48, 6, None, None, 1 / 32)
STANDARD = StandardConfig("standard", 48, 0.04, 0.0, None)
ORTHO = OrthoConfig("ortho", 0.5, "constant", 0.1, 0.0, "linear", 0.1, "jaccard", "sum")


def fresh(run, scale=1.0):
    training = Training(run, scale, torch.full((16,), 0.3), torch.device("cpu"))
    training.sae.double()
    return training


def slow_loss(sae, x, recon, dead=None, k=None, k_aux=8, aux_weight=1 / 32, l1=0.0):
    """Loss of one batch, token by token, straight from the formulas."""
    total = 0.0
    for row in x:
        z = (row - sae.b_dec) @ sae.W_enc + sae.b_enc
        if k is None:
            f = torch.relu(z)
        else:
            kept = sorted(range(len(z)), key=lambda i: -z[i].item())[:k]
            f = torch.stack([torch.relu(z[i]) if i in kept else z[i] * 0 for i in range(len(z))])
        error = row - (sum(f[i] * sae.W_dec[i] for i in range(len(f))) + sae.b_dec)
        total = total + (error.square().sum() if recon == "squared" else error.norm())
        total = total + l1 * f.sum()
        if dead is not None and dead.any():
            n_dead = int(dead.sum())
            ranked = sorted((i for i in range(len(z)) if dead[i]), key=lambda i: -z[i].item())[: min(k_aux, n_dead)]
            e_hat = sum(torch.relu(z[i]) * sae.W_dec[i] for i in ranked)
            total = total + aux_weight * min(1, n_dead / k_aux) * (error.detach() - e_hat).square().sum()
    return total / len(x)


@pytest.mark.parametrize("recon", ["squared", "norm"])
@pytest.mark.parametrize(
    ("architecture", "extra"), [(TOPK, {"k": 6}), (STANDARD, {"l1": 0.04})], ids=["topk", "standard"]
)
@pytest.mark.parametrize("n_dead", [0, 3, 20])
def test_loss_and_gradient_equal_the_formulas(recon, architecture, extra, n_dead):
    training = fresh(run_config(architecture, recon=recon))
    training.sae.tokens_since_fired[:n_dead] = 64
    dead = training.sae.dead() if "k" in extra else None
    small = batch_at(0, 6)
    training.sae.float()
    loss = training.forward(small, 1).loss
    found = [loss, *torch.autograd.grad(loss, list(training.sae.parameters()))]
    training.sae.double()
    rounding = Rounding(torch.float32)
    with rounding:
        expected = slow_loss(training.sae, small.x.double(), recon, dead, **extra)
        grads = torch.autograd.grad(expected, list(training.sae.parameters()))
    for one, other in zip(found, [expected, *grads], strict=True):
        rounding.assert_close(one, other)


def test_step_keeps_rows_at_unit_norm_and_removes_the_parallel_gradient():
    run = run_config(TOPK, ORTHO, precision="float64")
    training = Training(run, 1.0, torch.zeros(16), torch.device("cpu"))
    training.sae.normalize_decoder()  # which was drawn in float32
    moment = training.optimizer.state[training.sae.W_dec]["exp_avg"]
    for step in range(3):
        W, before = training.sae.W_dec.detach().clone(), moment.clone()
        training.step(batch_at(step), step)
        used = moment - training.run.train.beta1 * before
        assert 1e-3 < used.abs().max() < 1  # and so 100 roundings leave less than this of the part along a row:
        assert_within((used * W).sum(1), torch.zeros(48), torch.tensor(gamma(100)), terms=1e-3)
        close(training.sae.W_dec.norm(dim=1), torch.ones(48), n=2 * (16 + 4))


def test_components_are_logged_and_the_parts_add_up():
    training = Training(run_config(STANDARD, ORTHO), 1.0, torch.zeros(16), torch.device("cpu"))
    row = training.step(batch_at(1), 1, True, True).numbers
    total = (
        row["recon_loss"] + row["sparsity_weight"] * row["sparsity_loss"] + row["penalty_weight"] * row["penalty_loss"]
    )
    close(row["loss"], total, n=8, dtype=torch.float32)
    assert {"grad_norm/recon", "grad_norm/sparsity", "grad_norm/penalty", "grad_norm/total"} <= row.keys()
    assert row["grad_norm/penalty"] > 0 and row["penalty/competing_pairs"] > 0
    assert row["lr"] == training.run.learning_rate(1)


def test_losses_are_logged_in_raw_units_whatever_the_scale():
    rows = []
    for scale in (1.0, 4.0):
        run = run_config(TopKConfig("topk", 48, 48, None, None, 0.0))
        training = Training(run, scale, torch.zeros(16), torch.device("cpu"))
        rows.append(training.step(batch_at(0), 0, True, True).numbers)
    # with b_enc = b_dec = 0 the model is homogeneous, and a power of 2 changes no rounding
    assert rows[0]["recon_loss"] == rows[1]["recon_loss"] and rows[0]["fvu"] == rows[1]["fvu"]


@pytest.mark.parametrize("architecture", [TOPK, STANDARD], ids=["topk", "standard"])
def test_the_scale_folds_away_on_export(architecture):
    training = Training(run_config(architecture), 4.0, torch.full((16,), 0.3), torch.device("cpu"))
    for step in range(5):
        training.step(batch_at(step), step)
    x = batch_at(9).x
    with torch.no_grad():
        sae, rounding = training.sae, Rounding()
        with rounding:
            z_inside = sae.pre_activations(x * 4.0)
            inside = sae.decode(sae.activate(z_inside, training.total_steps - 1)) / 4.0
        w, settings = sae.export(4.0)
        z = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        f = torch.relu(z)
        if "k" in settings:
            ranked = z_inside.sort(descending=True).values  # the k-th is clear of the next one
            k = settings["k"]
            assert (ranked[:, k - 1] - ranked[:, k]).min() > 2 * rounding.bound(z_inside).max()
            kept = z.topk(k).indices
            f = torch.zeros_like(z).scatter(1, kept, f.gather(1, kept))
        rounding.assert_close(f @ w["W_dec"] + w["b_dec"], inside, factor=2)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t, b: b.x.fill_(math.nan), "activations x"),
        (lambda t, b: t.sae.W_enc.data.fill_(math.inf), "pre-activations z"),
        (lambda t, b: t.sae.W_dec.data.fill_(1e38), "x_hat|recon_loss"),
    ],
)
def test_the_first_thing_to_diverge_is_named_and_nothing_is_updated(spoil, named):
    training = Training(run_config(TOPK), 1.0, torch.zeros(16), torch.device("cpu"))
    batch = batch_at(0)
    spoil(training, batch)
    before = training.sae.b_enc.clone()
    with pytest.raises(Diverged, match=named) as caught:
        training.step(batch, 0)
    assert caught.value.step == 0 and torch.equal(before, training.sae.b_enc)


def test_a_gradient_that_is_not_finite_is_named():
    training = Training(run_config(STANDARD), 1.0, torch.zeros(16), torch.device("cpu"))
    training.sae.b_enc.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(Diverged, match="gradient of sae.b_enc"):
        training.step(batch_at(0), 0)


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e9])
def test_clipping_bounds_the_gradient_that_adam_sees(clip):
    training = Training(run_config(TOPK, clip=clip), 1.0, torch.zeros(16), torch.device("cpu"))
    norm = training.step(batch_at(0), 0, True).numbers["grad_norm/total"]
    seen = torch.cat([s["exp_avg"].flatten() for s in training.optimizer.state.values()]).norm() / (1 - 0.9)
    n = sum(parameter.numel() for _, parameter in training.named_parameters())
    expected = min(norm, clip) if clip else norm
    # two norms of n numbers; clipping divides by the norm and 1e-6
    assert_within(seen, expected, (2 * gamma(n + 8, torch.float32) + 1e-6 / norm) * expected)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", ["topk", "batch_topk", "standard", "jumprelu", "p_anneal"])
def test_on_a_gpu_a_later_step_names_the_first_that_was_not_finite(name, kernels):
    """The way that does not wait for the device, on the CPU: from the bad step on nothing changes, neither weights nor
    averages, counts, thresholds and group state, those of own components among them."""
    register_toy()
    words = {"topk": "k=4", "batch_topk": "k=4", "jumprelu": "target_l0=4"}.get(name, "target_l0=4")
    groups = ["group_layer=groups", "group_layer.group_size=8", "group_layer.adapt=similarity"]
    words = [f"architecture={name}", words, "penalty=adaptive_sharing", *groups, "group_layer.adapt_every=8"]
    training = Training(configured(*words, f"train.kernels={kernels}"), 1.0, torch.zeros(D_IN), torch.device("cpu"))
    training.penalties["toy"] = Toy(ToyConfig("toy"), D_IN, training.sae.d_sae, training.total_steps, torch.Generator())
    training.terms.append(replace(training.terms[0], name="toy", config=ToyConfig("toy")))
    training.nonfinite_guard.at_once = False
    for step in range(3):
        training.step(composed_batch_at(step), step)
    state = lambda: dict(training.named_parameters()) | training.buffers()  # noqa: E731
    before = {key: tensor.clone() for key, tensor in state().items()}
    bad = composed_batch_at(3)
    bad.x[4, 2] = math.nan
    training.step(bad, 3)
    assert training.buffers()["toy.average"].isfinite().all()
    with pytest.raises(Diverged, match="activations x") as caught:
        for step in range(4, 9):
            training.step(composed_batch_at(step), step)
    assert caught.value.step == 3
    for key, tensor in state().items():
        assert torch.equal(tensor, before[key]), key
    assert {"sae.tokens_since_fired", "toy.average", "groups.window_WG", "sae.W_dec"} <= before.keys()


def test_a_decoder_treated_in_ones_own_way_is_kept_too_where_a_step_is_not_finite():
    training = Training(run_config(TOPK, kernels="reference"), 1.0, torch.zeros(16), torch.device("cpu"))

    class Own(type(training.sae)):
        def normalize_decoder(self):
            self.W_dec.data.mul_(0.5)

    training.sae.__class__ = Own
    training.nonfinite_guard.at_once = False
    for step in range(2):
        before = training.sae.W_dec.detach().clone()
        batch = batch_at(step)
        batch.x[0, 0] = (0.0, math.nan)[step]
        training.step(batch, step)
        assert torch.equal(before, training.sae.W_dec) == (step == 1)


def test_judged_later_a_run_has_the_same_numbers():
    one, other = (Training(run_config(TOPK, ORTHO), 1.0, torch.zeros(16), torch.device("cpu")) for _ in range(2))
    other.nonfinite_guard.at_once = False
    for step in range(5):
        one.step(batch_at(step), step)
        other.step(batch_at(step), step)
    for mine, theirs in zip(one.sae.parameters(), other.sae.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_dead_features_are_counted_and_revived_by_the_auxiliary_loss():
    run = run_config(TopKConfig("topk", 48, 2, None, 16, 1.0), num_tokens=32 * 200)
    training = Training(run, 1.0, torch.full((16,), 0.3), torch.device("cpu"))
    with torch.no_grad():
        training.sae.b_enc[:20] = -2.0
    dead = []
    for step in range(200):
        training.step(batch_at(step), step)
        dead.append(int(training.sae.dead()[:20].sum()))
    assert max(dead) >= 18 and dead[-1] < max(dead) - 5


def test_progressive_k_goes_from_start_to_end():
    run = run_config(TopKConfig("topk", 48, 20, 5, None, 0.0))
    training = Training(run, 1.0, torch.zeros(16), torch.device("cpu"))
    ks = [training.sae.k_at(step) for step in range(run.total_steps)]
    assert ks[0] == 5 and ks[-1] == 20 and ks == sorted(ks)
    assert training.step(batch_at(0), 0, True, True).numbers["k"] == 5


def test_normalisation_gives_mean_norm_sqrt_d_in():
    run = run_config(TOPK, normalize_activations=True)
    x = batch_at(0).x
    close((x * activation_scale(x, run.train)).norm(dim=1).mean(), 4.0, n=2 * (32 + 16 + 4), dtype=torch.float32)


def test_geometric_median_minimises_the_distance():
    x = torch.randn(200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:20] += 50
    median = geometric_median(x, x.mean(0))

    def cost(point):
        return (x - point).norm(dim=1).mean()

    for shift in torch.eye(5, dtype=torch.float64):
        assert cost(median) <= cost(median + 1e-3 * shift) and cost(median) <= cost(median - 1e-3 * shift)
    run = run_config(TOPK, b_dec_init="geometric_median")
    x = x.float()
    assert torch.equal(decoder_bias(x, run.train), geometric_median(x.double(), x.double().mean(0)).float())
