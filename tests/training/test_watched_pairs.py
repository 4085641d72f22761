"""The monitor `pairs`: in every run, by one rule, exact, cheap, and without a trace in the training."""

import json
import math

import pytest
import torch
from composed import D_IN, STEPS, batch_at, choices, configured, save_checkpoint
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from sae_sweeps.architectures.context import Context
from sae_sweeps.kernels import coactivation
from sae_sweeps.kernels.coactivation import overlapping_pairs
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures
from sae_sweeps.training import checkpoint
from sae_sweeps.training.loop import Member, TrainingCallbacks, train
from sae_sweeps.training.step import Training
from sae_sweeps.training.watched_pairs import WatchedPairs

NUMBERS = ("overlap", "abs_cosine", "correlation")
AT = [1, 8]
"""2 % and 25 % of 30 steps."""


def training_of(*words):
    return Training(configured(*words), 1.0, torch.zeros(D_IN), torch.device("cpu"))


def context(f, W_dec, step=0, top_k=None):
    features = DenseFeatures(f)
    if top_k:
        values, indices = f.topk(top_k, dim=1, sorted=False)
        features = TopKFeatures(values, indices, f.shape[1])

    class SAE:
        pass

    sae = SAE()
    sae.W_dec = W_dec
    x = torch.zeros(len(f), W_dec.shape[1])
    return Context(sae, None, x, f, features, x, step, 100, 0)


def random_case(n=30, d_sae=40, density=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    f = torch.rand(n, d_sae, generator=generator) * (torch.rand(n, d_sae, generator=generator) < density)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, 5, generator=generator, dtype=torch.float64), dim=1)
    return f, W_dec


def slow_overlaps(f):
    """Jaccard overlap by pair i < j, of those that are active on a common token."""
    active = [{t for t in range(len(f)) if f[t, i] > 0} for i in range(f.shape[1])]
    pairs = ((i, j) for i in range(f.shape[1]) for j in range(i + 1, f.shape[1]))
    return {(i, j): len(active[i] & active[j]) / len(active[i] | active[j]) for i, j in pairs if active[i] & active[j]}


def slow_correlation(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread = math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))
    return top / spread if spread else 0.0


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("overlap", ["jaccard", "min", "cosine", "batch"])
def test_equals_the_slow_reference(top_k, overlap):
    f, W_dec = random_case()
    if top_k:
        f = torch.zeros_like(f).scatter(1, f.topk(top_k).indices, f.topk(top_k).values)
    competition = Competition(overlap, "linear", 0.1, 0.1)
    early, late, own = WatchedPairs(1).records(context(f, W_dec, top_k=top_k), {"penalty": competition})
    expected = slow_overlaps(f)
    ranked = sorted(expected.values())
    n, third = len(ranked), len(ranked) // 2 - 8
    assert early["pairs"] == late["pairs"] == own["pairs"] and len(early["pairs"]) == 48 and n > 100
    for found, wanted in zip(
        (early["overlap"][:16], early["overlap"][16:32], early["overlap"][32:]),
        (ranked[-16:], ranked[third : third + 16], ranked[:16]), strict=True
    ):  # fmt: skip
        assert found == [round(value, 6) for value in wanted]
    for number, (i, j) in enumerate(early["pairs"]):
        assert early["overlap"][number] == round(expected[i, j], 6)
        cosine = abs(sum(a * b for a, b in zip(W_dec[i].tolist(), W_dec[j].tolist(), strict=True)))
        correlation = slow_correlation(f[:, i].tolist(), f[:, j].tolist())
        for key, value in (("abs_cosine", cosine), ("correlation", correlation)):
            assert abs(early[key][number] - value) <= 1e-6  # six places are written
        both, n_i, n_j = (int(s.sum()) for s in ((f[:, i] > 0) & (f[:, j] > 0), f[:, i] > 0, f[:, j] > 0))
        size = {"jaccard": n_i + n_j - both, "min": min(n_i, n_j), "cosine": math.sqrt(n_i * n_j), "batch": len(f)}
        of_penalty = both / size[overlap]
        assert abs(own["overlap"][number] - of_penalty) <= 1e-6
        assert abs(own["c"][number] - min(max((of_penalty - 0.1) / 0.1, 0), 1)) <= 1e-5
    assert early["c"] == own["c"] and {key: early[key] for key in own if key not in ("monitor", "overlap")} == {
        key: value for key, value in own.items() if key not in ("monitor", "overlap")
    }


def test_pairs_that_never_meet_later_have_no_overlap_and_constant_features_no_correlation():
    f, W_dec = random_case()
    watched = WatchedPairs(1)
    watched.records(context(f, W_dec), {})
    sigmoid = Competition("min", "sigmoid", 0.3, 0.1)
    for later in (f * 0, f * 0 + 1):
        early, _, own = watched.records(context(later, W_dec, step=3), {"penalty": sigmoid})
        share = float(later[0, 0])
        assert set(early["overlap"]) == set(own["overlap"]) == {share} and set(early["correlation"]) == {0.0}
        assert early["abs_cosine"] == own["abs_cosine"] and (set(own["c"]) == {0.0}) == (share == 0)
        json.dumps([early, own], allow_nan=False)


def test_few_pairs_and_none():
    W_dec, f = random_case()[1], torch.zeros(30, 40)
    watched = WatchedPairs(1)
    assert watched.records(context(f, W_dec), {}) == [] and int(watched.chosen_at[0]) < 0
    f[3, 5] = f[3, 9] = 1.0
    early, late = watched.records(context(f, W_dec, step=4), {})  # the first step at which two meet
    assert early["pairs"] == [[5, 9]] * 3 and early["chosen_at"] == 4 and late["chosen"] == 25


def test_of_a_dense_batch_the_pairs_of_a_fixed_sample_are_exact(monkeypatch):
    monkeypatch.setattr(coactivation, "SAMPLED", 12)
    f, _ = random_case(density=0.7)
    i, j, n = overlapping_pairs(DenseFeatures(f), 30)
    assert len(n) == 40 * 39 / 2
    monkeypatch.setattr(coactivation, "MAX_LISTED", 1000)
    i, j, n = overlapping_pairs(DenseFeatures(f), 30)
    expected = slow_overlaps(f)
    assert len(n) == 12 * 11 / 2 and bool((i < j).all())
    assert [expected[pair] for pair in zip(i.tolist(), j.tolist(), strict=True)] == n.tolist()
    again = overlapping_pairs(DenseFeatures(random_case(density=0.8, seed=3)[0]), 30)
    assert torch.equal(i, again[0]) and torch.equal(j, again[1])


def test_of_equal_overlaps_the_choice_is_spread_over_the_features_and_the_same_in_every_run():
    W_dec, f = random_case()[1], torch.ones(30, 40)
    for top_k in (None, 40):
        chosen = WatchedPairs(1).records(context(f, W_dec, top_k=top_k), {})[0]
        assert set(chosen["overlap"]) == {1.0} and len(set(map(tuple, chosen["pairs"]))) == 48
        for place in range(3):
            features = [feature for pair in chosen["pairs"][16 * place : 16 * place + 16] for feature in pair]
            assert max(features.count(feature) for feature in features) <= 5
    other = WatchedPairs(1).records(context(f * (torch.arange(30) < 20)[:, None], W_dec), {})[0]
    assert other["pairs"] == chosen["pairs"]


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            self.numel = max(self.numel, one.numel() if isinstance(one, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("kind", ["dense", "sparse", "a few dense tokens"])
def test_no_matrix_of_a_dictionary_s_width_squared(kind):
    """16,384 features: half of them active, as in a new standard SAE; 32; and 32 but for four tokens."""
    d_sae, n = 16_384, 64
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(n, d_sae, generator=generator)
    share = {"dense": 0.5, "sparse": 32 / d_sae, "a few dense tokens": 32 / d_sae}[kind]
    f = f * (torch.rand(n, d_sae, generator=generator) < share)
    if kind == "a few dense tokens":
        f[:4] = 1
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, 4, generator=generator), dim=1)
    with Largest() as largest:
        records = WatchedPairs(1).records(context(f, W_dec), {})
    assert len(records[0]["pairs"]) == 48
    assert largest.numel <= max(n * d_sae, coactivation.MAX_LISTED) < d_sae**2 / 10


@pytest.mark.parametrize("penalty", ["none", *choices("penalty"), "ortho+contrastive"])
def test_every_run_has_them_from_two_percent_on_and_its_training_is_the_same_without(penalty):
    words = ["architecture=standard", f"penalty={penalty}", *(["group_layer.group_size=8"] * (penalty == "bottleneck"))]
    one, other = training_of(*words), training_of(*words, "train.monitor_every=0")
    records, numbers = [], {}
    for step in range(STEPS):
        monitored = step % 7 == 0 or step == STEPS - 1
        report = one.step(batch_at(step), step, logged=monitored, monitored=monitored)
        records += [{"step": step, **record} for record in report.monitors]
        numbers |= report.numbers
        assert other.step(batch_at(step), step).monitors == []
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True)
    )
    pairs = [record for record in records if record["monitor"] == "pairs"]
    assert [r["step"] for r in pairs if r["chosen"] == 2] == [1, 7, 8, 14, 21, 28, 29]
    assert [r["step"] for r in pairs if r["chosen"] == 25] == [8, 14, 21, 28, 29]
    for percent, at in zip((2, 25), AT, strict=True):
        of_moment = [record for record in pairs if record["chosen"] == percent]
        assert all(record["pairs"] == of_moment[0]["pairs"] and record["chosen_at"] == at for record in of_moment)
    competing = penalty.startswith("ortho")
    assert all(set(record) >= set(NUMBERS) and ("c" in record) == competing for record in pairs)
    assert all(len(record[key]) == len(record["pairs"]) == 48 for record in pairs for key in NUMBERS)
    earlier = [record for record in records if record["monitor"] == "competition"]
    assert [record["step"] for record in earlier] == ([8, 14, 21, 28, 29] if competing else [])
    assert [record.get("penalty") for record in earlier] == [None if penalty == "ortho" else "ortho"] * len(earlier)
    # gradients by loss term, in every run
    assert {"grad_norm/recon", "grad_norm/sparsity", "grad_norm/total"} <= numbers.keys()
    assert (penalty == "none") == (not any(name in numbers for name in ("grad_norm/penalty", "grad_norm/ortho")))


class Record(TrainingCallbacks):
    def __init__(self):
        self.rows, self.records, self.quarters = [], [], []

    def on_row(self, row):
        self.rows.append(row)

    def on_monitor(self, record):
        self.records.append(record)

    def on_quarter(self, training, percent):
        self.quarters.append(percent)


def trained(training, folder, start=0):
    record = Record()
    train([Member(training, start, folder, record)], lambda step: {None: batch_at(step)})
    return record


def test_without_monitors_the_rows_and_the_snapshots_remain(tmp_path):
    words = ["penalty=ortho", "k=8", "train.log_every=20"]
    bare = trained(training_of(*words, "train.monitor_every=0"), tmp_path / "bare")
    full = trained(training_of(*words, "train.monitor_every=20"), tmp_path / "full")
    assert [row["step"] for row in bare.rows] == [row["step"] for row in full.rows] == [0, 20, STEPS - 1]
    assert bare.records == [] and full.records and bare.quarters == full.quarters == [25, 50, 75, 100]
    assert not any(key.startswith("grad_norm/recon") for row in bare.rows for key in row)
    assert [row["loss"] for row in bare.rows] == [row["loss"] for row in full.rows]


def test_a_checkpoint_of_an_earlier_version_resumes_and_chooses_anew(tmp_path):
    words = ["penalty=ortho", "k=8", "train.monitor_every=10"]
    training = training_of(*words)
    for step in range(12):
        training.step(batch_at(step), step)
    save_checkpoint(training, 12, tmp_path)
    tensors = load_file(tmp_path / checkpoint.FILE)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("watched_pairs.")}
    tensors["penalty.watched"] = torch.full((2, 48), -1)
    del tensors["checksum"]
    save_file(tensors | {"checksum": torch.tensor(checkpoint._checksum(tensors))}, tmp_path / checkpoint.FILE)
    resumed = training_of(*words)
    assert checkpoint.load_checkpoint(resumed, tmp_path) == 12
    record = trained(resumed, tmp_path, start=12)
    assert {r["chosen_at"] for r in record.records if r["monitor"] == "pairs"} == {20}
    whole = trained(training_of(*words), tmp_path / "whole")
    assert whole.rows[-1]["loss"] == record.rows[-1]["loss"]
