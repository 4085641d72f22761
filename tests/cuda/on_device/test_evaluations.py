"""What evaluations compute on the simulated device: the same numbers as on the CPU, and no tensors of two devices."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_lm import BOS, D_IN, D_SAE, VOCABULARY, ToyLM, toy_sae, toy_tokens

from sae_sweeps.activations.synthetic import SyntheticWorld
from sae_sweeps.architectures import saelens
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.schema import LayerConfig, SyntheticConfig
from sae_sweeps.evaluation import absorption, autointerp, composition, features, labels, probes, rows, unlearning
from sae_sweeps.evaluation.core import evaluate_core
from sae_sweeps.evaluation.first_letters import letter_probe
from sae_sweeps.evaluation.geometry import decoder_geometry, similarity_snapshot
from sae_sweeps.evaluation.questions import QuestionSet
from sae_sweeps.evaluation.recovery import recovery
from sae_sweeps.evaluation.sums import count_firing, sum_features
from sae_sweeps.evaluation.unembedded import logit_effects
from sae_sweeps.kernels.features import DenseFeatures, TopKFeatures

LAYER, CONTEXT = LayerConfig(), 8
DEVICES = [torch.device("cpu"), torch.device("cuda:0")]


class DeviceLM(ToyLM):
    """A toy model on a device, whose texts are digits."""

    bos_id = BOS

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.embedding_VD, self.readout_DV = self.embedding_VD.to(device), self.readout_DV.to(device)

    def tokenize_rows(self, texts: list[str], context: int) -> Tensor:
        found = [([BOS] + [2 + int(char) for char in text])[:context] for text in texts]
        return torch.tensor([row + [1] * (context - len(row)) for row in found])

    def tokenizer(self, text: str, **kwargs):
        return {"input_ids": [2 + "ABCD".index(text.strip())]}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shared_of(lm: DeviceLM, **cfg):
    return SimpleNamespace(
        lm=lm, device=lm.device, layer=LAYER, cfg=EvalConfig(**cfg), begin=lambda *a: None, advance=lambda n=1: None
    )


def core(device):
    saes = {a: toy_sae(architecture=a).to(device) for a in ("topk", "standard")}
    found = evaluate_core(
        saes, EvalConfig(batch_size=2, recon_batches=2, sparsity_batches=2), DeviceLM(device), LAYER, toy_tokens(8)
    )
    return {name: [result.metrics, result.features] for name, result in found.items()}


def means_of_rows(device):
    texts = {"a": ["123", "1234567890", "5"], "b": ["88", "123", "4"]}
    harvested = rows.harvest_rows(texts, DeviceLM(device), LAYER, CONTEXT, 2)
    saes = [toy_sae(architecture=a).to(device) for a in ("topk", "standard")]
    return [rows.mean_activations(harvested, device)] + [
        f(harvested, sae) for sae in saes for f in (rows.mean_features, rows.at_special_tokens)
    ]


def sums_of_features(device):
    values, indices = draw(9, 3).relu(), draw(9, 7, seed=1).argsort(1)[:, :3]
    f = TopKFeatures(values.to(device), indices.to(device), 7)
    length = torch.tensor([4, 0, 5], device=device)
    return [
        sum_features(f, length),
        sum_features(DenseFeatures(f.dense()), length),
        count_firing(f),
        count_firing(f, length),
    ]


def sparse_probes(device):
    x = draw(60, 7)
    tasks = []
    for c in range(3):
        label, order = x[:, c] > 0, draw(60, seed=c + 1).argsort()
        tasks.append(probes.BinaryTask(order[:40], label[order[:40]], order[40:], label[order[40:]]))
    x = x.to(device)
    how = dict(batch_size=16, epochs=4, lr=1e-2, l1=1e-3, patience=2)
    made = probes.train_probes(x, x, [tasks], [torch.Generator().manual_seed(c) for c in range(3)], **how)[0]
    chosen = probes.most_different(x, tasks, 2)
    accuracies = [probes.sparse_probe_accuracy(x, x, task, k) for task, k in zip(tasks, chosen, strict=True)]
    return [made.weight_CD, made.bias_C, made.accuracy_C, chosen, accuracies]


def letters(device):
    sae = toy_sae(architecture="standard").to(device, torch.float32)
    x, letter = draw(60, D_IN), torch.arange(60) % 5
    f = absorption.encode(sae, x)
    weight, bias = letter_probe(
        f, letter, torch.Generator().manual_seed(0), batch_size=16, epochs=2, weight_decay=1e-6, l1=1e-2
    )
    cfg = EvalConfig().absorption
    split = absorption.split_features(1, weight[1], (f, letter), (f, letter), cfg)
    fraction, full = absorption.absorbed(sae, x[letter == 1], draw(D_IN, seed=3), split)
    known = SimpleNamespace(words_x_ND=x[letter == 1], weight_26D=draw(2, D_IN), words=list("abcdefghijkl"))
    some = torch.arange(12) % 2 == 0
    return [weight, bias, split, fraction, full, absorption.examples(sae, known, 1, some, split)]


def separation(device):
    world = SyntheticWorld(SyntheticConfig(d_in=8))
    W_dec = draw(40, 8).to(device)
    found = [decoder_geometry(W_dec), recovery(W_dec, world.features_FD, world.kind, world.parent_F)]
    snapshot = similarity_snapshot(W_dec)
    role = torch.arange(64) % 2
    of_labels = [labels.label_separation(f, role) for f in (draw(64, 9).relu().to(device), draw(64, 9).relu())]
    assert of_labels[0] == of_labels[1]  # where the labels are is not where the features are
    return [*found, [snapshot[key].tolist() for key in snapshot], composition.composition(W_dec), *of_labels]


def unlearned(device):
    """Every setting, where the chosen features fire."""
    sae, lm = toy_sae(architecture="standard").to(device), DeviceLM(device)
    questions = [
        QuestionSet("letters", True, [[BOS, 2, 3, 4], [BOS, 5, 6]], [0, 1]),
        QuestionSet("continued", False, [[BOS, 2 + i, 3, 4 + i % 2] for i in range(8)], [0, 2], tail=1),
    ]
    shared = shared_of(lm, llm_batch=8)
    batches = list(unlearning.question_batches(questions, shared))
    counts = {(kind, half): 1 for kind in (True, False) for half in (False, True)}
    cfg = shared.cfg.unlearning
    forget, retain = np.linspace(0.1, 0.9, D_SAE), np.zeros(D_SAE)
    return unlearning.all_settings(sae, forget, retain, batches, counts, cfg, shared)[0]


def examples(device):
    sae, lm = toy_sae(architecture="topk").to(device), DeviceLM(device)
    return autointerp.activations_of({"": sae}, {"": [0, 3]}, toy_tokens(6), shared_of(lm, llm_batch=4))


def kept_features(device):
    sae, lm, tokens_NL = toy_sae(architecture="topk").to(device), DeviceLM(device), toy_tokens(6)
    cfg, shared = EvalConfig().features, shared_of(lm, llm_batch=4)
    text_NL, label_NL = torch.ones_like(tokens_NL, dtype=torch.bool), tokens_NL % 3 - 1
    found = features.collect({"": sae}, shared, cfg, tokens_NL, text_NL, label_NL, 2)[""]
    arrays = found.arrays() | features.neighbours(sae, found, 3)
    effects = logit_effects(sae.weights["W_dec"], lm, LayerConfig("resid_post", 0), 3)
    return [{name: array.tolist() for name, array in arrays.items()}, effects]


@pytest.mark.parametrize(
    "what",
    [core, means_of_rows, sums_of_features, sparse_probes, letters, separation, unlearned, examples, kept_features],
)
def test_numbers_are_those_of_the_cpu(what, monkeypatch):
    monkeypatch.setattr(saelens, "choose", lambda requested, device: None)  # the plain formulas on the CPU too
    monkeypatch.setattr(composition, "STEPS", 3)
    assert VOCABULARY > 10
    on_cpu, on_device = (repr(plain(what(device))) for device in DEVICES)
    assert on_device == on_cpu


def plain(found):
    """With lists for tensors."""
    if isinstance(found, Tensor):
        return found.tolist()
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return [plain(value) for value in found] if isinstance(found, list | tuple) else found
