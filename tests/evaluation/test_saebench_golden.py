"""Against SAEBench 0.6.0 itself on a small world, frozen by scripts/freeze_saebench.py: its functions, its draws from
our streams, two SAEs in SAELens's format."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bounds import Rounding, assert_within
from safetensors.torch import load_file

from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import AblationConfig, AbsorptionConfig, EvalConfig, ProbingConfig
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.evaluation.ablation import logits_of
from sae_sweeps.evaluation.absorption import absorbed, split_features
from sae_sweeps.evaluation.probes import Probes, accuracy
from sae_sweeps.evaluation.rows import Rows
from sae_sweeps.evaluation.scr import all_accuracies, pair_draws, scr_accuracies, scr_metrics
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.sparse_probing import accuracies as probing_accuracies
from sae_sweeps.evaluation.tasks import PAIRED, Pair
from sae_sweeps.evaluation.tpp import accuracies, rest_draws, rest_folds, tpp_metrics
from sae_sweeps.evaluation.unlearning import candidates_for

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden_saebench.json").read_text())
TENSORS = load_file(HERE / "golden_saebench.safetensors")
PAIR = Pair("toy", ("a", "b"))
PAIR_CLASSES = [name for pair in PAIRED.items() for name in pair]
N_VALUES = [1, 2, 5, 20]


def sae_of(name: str) -> ExportedSAE:
    names = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if name == "jumprelu" else [])]
    return ExportedSAE(name, {w: TENSORS[f"{name}.{w}"] for w in names}, 4 if name == "topk" else None)


class GoldenShared(Shared):
    """Rows from the file in the place of harvested ones."""

    def rows(self, data, split):
        labels = PAIR_CLASSES if isinstance(data, Pair) else ["0", "1", "2"]
        prefix = f"pair_{split}" if isinstance(data, Pair) else split
        x_RLD = torch.cat([TENSORS[f"rows.{prefix}.{number}"] for number in range(len(labels))])
        plain_RL = x_RLD.sum(-1) != 0
        n = len(x_RLD)
        sizes = dict.fromkeys(labels, n // len(labels))
        return Rows(x_RLD[plain_RL], plain_RL.sum(1), (~plain_RL).sum(1), torch.arange(n), sizes)


@pytest.fixture
def shared(tmp_path):
    lm = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    cfg = EvalConfig(
        selection="test", probing=ProbingConfig(k_values=[1, 2, 5]), ablation=AblationConfig(n_values=N_VALUES)
    )
    return GoldenShared(cfg, lm, LayerConfig(), "toy", "toy", None, tmp_path)


@pytest.fixture(params=["topk", "jumprelu"])
def name(request):
    return request.param


def given_probes(kind: str) -> Probes:
    return Probes(TENSORS[f"{kind}.weight"], TENSORS[f"{kind}.bias"], torch.zeros(3))


def strings(found):
    """JSON's keys are strings."""
    return json.loads(json.dumps(found))


def test_sparse_probing_per_class(shared, name):
    draws = rest_draws(shared, "toy")
    parts = rest_folds(shared, "toy")
    means = [shared.features(name, sae_of(name), "toy", split) for split in ("train", "test")]
    found = probing_accuracies("sae", *means, draws, parts, shared, "toy")
    assert found.keys() == GOLDEN[name]["sparse_probing"].keys()
    for metric, by_class in GOLDEN[name]["sparse_probing"].items():
        assert found[metric] == pytest.approx(by_class, abs=1e-6), metric  # counts over a few dozen rows


def test_every_tpp_accuracy_and_metric(shared, name):
    draws, probes = rest_draws(shared, "toy"), given_probes("tpp")
    found = accuracies(sae_of(name), name, shared, "toy", draws, probes)
    assert strings(found) == GOLDEN[name]["tpp"]["accuracies"]
    logits = logits_of(probes, shared.model_means("toy", "test"))
    clean = {c: accuracy(logits[t.test_rows, i], t.test_labels) for i, (c, t) in enumerate(draws.items())}
    assert clean == GOLDEN[name]["tpp"]["clean"]
    assert tpp_metrics(found, clean)[0] == pytest.approx(GOLDEN[name]["tpp"]["metrics"])


def test_every_scr_accuracy_and_metric(shared, name):
    draws, probes = pair_draws(shared, PAIR), given_probes("scr")
    found = scr_accuracies(sae_of(name), name, shared, PAIR, draws, probes)
    assert strings(found) == GOLDEN[name]["scr"]["accuracies"]
    clean = all_accuracies(logits_of(probes, shared.model_means(PAIR, "test")), draws)
    assert clean == GOLDEN[name]["scr"]["clean"]
    assert scr_metrics([found], [clean], [clean]) == pytest.approx(GOLDEN[name]["scr"]["metrics"])


def test_absorption_of_every_word(name):
    sae, x, letters = sae_of(name), TENSORS["letters.x"], TENSORS["letters.letter"]
    f = sae.encode(x)
    for letter, golden in enumerate(GOLDEN[name]["absorption"].values()):
        weight = TENSORS[f"{name}.letter_weight"][letter]
        split = split_features(letter, weight, (f, letters), (f, letters), AbsorptionConfig(max_k=5))
        assert split == golden["split"]
        with Rounding() as rounding:
            fraction, full = absorbed(sae, x[golden["words"]], TENSORS["letters.weight"][letter], split)
        rounding.assert_close(golden["fraction"], fraction, factor=2)
        assert full.tolist() == golden["full"]
    assert any(any(golden["full"]) for golden in GOLDEN[name]["absorption"].values()) or name == "topk"


def test_the_clamped_stream_and_its_features(name):
    sae, x = sae_of(name), TENSORS["clamp.x"]
    forget, retain = TENSORS["clamp.forget"].numpy(), TENSORS["clamp.retain"].numpy()
    for threshold, golden in GOLDEN[name]["unlearning"].items():
        ranked = candidates_for(forget, retain, float(threshold))
        assert ranked.tolist() == golden
        chosen = torch.from_numpy(ranked[:5].copy())
        with Rounding() as rounding:
            f = sae.encode(x)[..., chosen]
            f[:, 0] = 0
            changed = x + torch.where(f > 0, -25 - f, 0) @ sae.weights["W_dec"][chosen]
            # SAEBench decodes all features before and after the clamp and adds the error
            f = sae.encode(x)
            error = x - sae.decode(f)
        bound = 2 * rounding.bound(changed) + 2 * rounding.bound(error)
        assert_within(TENSORS[f"{name}.clamped.{threshold}"], changed, bound)
    assert np.isfinite(forget).all()
