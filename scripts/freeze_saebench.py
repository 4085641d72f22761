"""Freeze what SAEBench computes on a small world: `python scripts/freeze_saebench.py` in SAEBench's environment.

Writes tests/evaluation/golden_saebench.{safetensors,json}: activations of labelled rows, words and questions, two SAEs
(TopK and JumpReLU), probes, and SAEBench's own results on them, drawn from our streams. `make test` compares with that.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from sae_sweeps.architectures import saelens  # noqa: E402
from sae_sweeps.evaluation.draws import stream_seed  # noqa: E402

D_IN, D_SAE, CONTEXT, N_ROWS, SEED = 8, 24, 6, 24, 42
CLASSES = ("0", "1", "2")
PLACE = PROJECT / "tests/evaluation/golden_saebench"


def main() -> None:
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    saes = {name: make_sae(name, tensors) for name in ("topk", "jumprelu")}
    golden: dict[str, Any] = {name: {} for name in saes}
    rows = {split: make_rows(split, CLASSES, tensors) for split in ("train", "test")}
    pair = {split: make_rows(f"pair_{split}", PAIR_CLASSES, tensors) for split in ("train", "test")}
    probes(golden, saes, rows)
    ablations(golden, saes, rows, pair, tensors)
    absorption(golden, saes, tensors)
    unlearning(golden, saes, tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, PLACE.with_suffix(".safetensors"))
    PLACE.with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n")


def make_sae(name: str, tensors: dict[str, torch.Tensor]) -> Any:
    from sae_lens import SAE

    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, D_IN), dim=1)
    weights = {"W_enc": W_dec.T + 0.1 * torch.randn(D_IN, D_SAE), "b_enc": 0.1 * torch.randn(D_SAE), "W_dec": W_dec}
    weights["b_dec"] = 0.3 * torch.randn(D_IN)
    if name == "jumprelu":
        weights["threshold"] = 0.2 + 0.1 * torch.rand(D_SAE)
    tensors |= {f"{name}.{key}": w.clone() for key, w in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        saelens.save(saelens.ExportedSAE(name, weights, 4 if name == "topk" else None, "x", "y"), Path(folder) / "sae")
        return SAE.load_from_disk(Path(folder) / "sae")


PAIR_CLASSES = (
    "male / female", "female_data_only", "professor / nurse", "nurse_data_only", "male_professor / female_nurse",
    "female_nurse_data_only",
)  # fmt: skip


def make_rows(split: str, classes: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Activations by class [rows, context, d_in], zero where a token is special."""
    out = {}
    torch.manual_seed(len(split))
    for number, label in enumerate(classes):
        torch.manual_seed(number)
        mean = torch.randn(D_IN)
        torch.manual_seed(1000 * len(split) + number)
        x = 1.2 * mean + torch.randn(N_ROWS, CONTEXT, D_IN)
        length = torch.randint(1, CONTEXT, (N_ROWS,))
        x[torch.arange(CONTEXT)[None] >= length[:, None]] = 0
        x[:, 0] = torch.where((length > 1)[:, None], 0, x[:, 0])
        out[label] = x
        tensors[f"rows.{split}.{number}"] = x.clone()
    return out


class Draws:
    """SAEBench's draws from our streams: the data set and the purpose are set before each call."""

    def __init__(self) -> None:
        import sae_bench.evals.sparse_probing.probe_training as training

        self.data, self.split, self.label = "", "train", ""
        prepare, train = training.prepare_probe_data, training.train_probe_gpu

        def prepared(acts: dict[str, Any], label: str, perform_scr: bool = False) -> Any:
            self.label = label
            torch.manual_seed(stream_seed(SEED, "rows", self.data, label, self.split_of(acts)))
            return prepare(acts, label, perform_scr)

        def trained(*args: Any, **kwargs: Any) -> Any:
            torch.manual_seed(stream_seed(SEED, "probe", self.data, self.label))
            return train(*args, **kwargs)

        training.prepare_probe_data, training.train_probe_gpu = prepared, trained
        self.test: list[Any] = []

    def split_of(self, acts: dict[str, Any]) -> str:
        return "test" if self.split == "test" or any(acts is test for test in self.test) else "train"


def probes(golden: dict[str, Any], saes: dict[str, Any], rows: dict[str, dict[str, torch.Tensor]]) -> None:
    """Accuracies of all probes on mean features."""
    import sae_bench.evals.sparse_probing.probe_training as training
    from sae_bench.sae_bench_utils.activation_collection import get_sae_meaned_activations

    draws.data, draws.split = "toy", "train"
    for name, sae in saes.items():
        means = {split: get_sae_meaned_activations(by_class, sae, 7) for split, by_class in rows.items()}
        draws.test = [means["test"]]
        _, whole = training.train_probe_on_activations(
            means["train"], means["test"], use_sklearn=False, batch_size=250, epochs=100, lr=1e-2
        )
        golden[name]["sparse_probing"] = {"sae_test_accuracy": whole}
        for k in (1, 2, 5):
            _, found = training.train_probe_on_activations(means["train"], means["test"], select_top_k=k)
            golden[name]["sparse_probing"][f"sae_top_{k}_test_accuracy"] = found


def ablations(
    golden: dict[str, Any],
    saes: dict[str, Any],
    rows: dict[str, dict[str, torch.Tensor]],
    pair: dict[str, dict[str, torch.Tensor]],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Every accuracy after every ablation, and the metrics."""
    import sae_bench.evals.scr_and_tpp.main as module
    from sae_bench.evals.sparse_probing.probe_training import Probe

    for kind, by_split, data, classes in (
        ("tpp", rows, "toy", list(CLASSES)),
        ("scr", pair, "toy_scr_a_b", list(PAIR_CLASSES[::2])),
    ):
        torch.manual_seed(7)
        made = {}
        for label in classes:
            positive, negative = (
                by_split["train"][label],
                torch.cat([x for c, x in by_split["train"].items() if c != label]),
            )
            direction = positive.flatten(0, 1).mean(0) - negative.flatten(0, 1).mean(0)
            made[label] = Probe(D_IN, torch.float32)
            made[label].net.weight.data = direction[None] + 0.2 * torch.randn(1, D_IN)
            made[label].net.bias.data = 0.1 * torch.randn(1)
        tensors[f"{kind}.weight"] = torch.cat([probe.net.weight.data for probe in made.values()])
        tensors[f"{kind}.bias"] = torch.cat([probe.net.bias.data for probe in made.values()])
        draws.data = data
        for name, sae in saes.items():
            scr = kind == "scr"
            draws.split, draws.test = "train", []
            effects = module.get_all_node_effects_for_one_sae(sae, made, classes, scr, by_split["train"], 7)
            draws.split = "test"
            found = module.perform_feature_ablations(
                made, sae, 7, by_split["test"], effects, [1, 2, 5, 20], classes, 500, scr
            )
            means = module.activation_collection.create_meaned_model_activations(by_split["test"])
            clean = module.get_probe_test_accuracy(made, classes, means, 500, scr)
            if scr:
                metrics = module.get_scr_plotting_dict(found, clean)
            else:
                metrics, _ = module.create_tpp_plotting_dict(found, clean)
            golden[name][kind] = {"accuracies": found, "clean": clean, "metrics": metrics}


def absorption(golden: dict[str, Any], saes: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Split features, absorption fraction and full absorption of every word of four letters."""
    import sae_bench.evals.absorption.feature_absorption_calculator as calculator
    import sae_bench.evals.absorption.k_sparse_probing as k_sparse
    from sae_bench.evals.absorption.probing import LinearProbe

    torch.manual_seed(11)
    letters = torch.arange(26).repeat(8)
    directions = torch.randn(26, D_IN)
    x = directions[letters] + 0.7 * torch.randn(len(letters), D_IN)
    tensors |= {
        "letters.x": x,
        "letters.letter": letters,
        "letters.weight": directions,
        "letters.bias": torch.zeros(26),
    }
    labels = [(f"word{i}", int(letter)) for i, letter in enumerate(letters)]
    probe = LinearProbe(D_IN, 26)
    probe.load_state_dict({"fc.weight": directions, "fc.bias": torch.zeros(26)})
    for name, sae in saes.items():
        torch.manual_seed(5)
        l1 = LinearProbe(D_SAE, 26)
        tensors[f"{name}.letter_weight"] = l1.weights.detach().clone()
        k_sparse.train_sparse_multi_probe = lambda *a, l1=l1, **k: l1
        found = k_sparse.train_k_sparse_probes(sae, labels, x, ks=range(1, 6), precalc_sae_acts=True)
        raw = k_sparse.eval_probe_and_sae_k_sparse_raw_scores(sae, probe, found, labels, x)
        meta = k_sparse.sae_k_sparse_metadata(sae, probe, found, "x", 0)
        frame = k_sparse.build_metrics_df(raw, meta, max_k_value=5)
        k_sparse.add_feature_splits_to_metrics_df(frame, max_k_value=5)
        split = {row["letter"]: [int(f) for f in row["split_feats"]] for _, row in frame.iterrows()}
        model = SimpleNamespace(to_tokens=lambda text: [[0]])
        model.run_with_cache = lambda prompts, names_filter: (
            None,
            {names_filter[0]: torch.stack([x[int(p)] for p in prompts])[:, None].expand(-1, 2, -1)},
        )
        judge = calculator.FeatureAbsorptionCalculator(model=model, icl_word_list=[], word_token_pos=-2, topk_feats=10)
        judge._build_prompts = lambda words: [SimpleNamespace(base=w, word=w) for w in words]
        out: dict[str, Any] = {}
        for letter in range(4):
            words = [
                str(i)
                for i in range(len(letters))
                if int(letters[i]) == letter and float(x[i] @ directions[letter]) > 0
            ]
            judged = judge.calculate_absorption(
                sae, words, directions[letter], split["abcd"[letter]], 0, show_progress=False
            )
            out["abcd"[letter]] = {
                "words": [int(w) for w in words],
                "split": split["abcd"[letter]],
                "fraction": [float(w.absorption_fraction) for w in judged.word_results],
                "full": [bool(w.is_full_absorption) for w in judged.word_results],
            }
        golden[name]["absorption"] = out


def unlearning(golden: dict[str, Any], saes: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """The clamped residual stream, and which features are clamped."""
    from sae_bench.evals.unlearning.utils.feature_activation import get_top_features
    from sae_bench.evals.unlearning.utils.intervention import anthropic_clamp_resid_SAE_features

    torch.manual_seed(3)
    x = torch.randn(5, 4, D_IN)
    forget, retain = np.random.default_rng(0).random(D_SAE), np.random.default_rng(1).random(D_SAE) ** 6
    tensors |= {"clamp.x": x, "clamp.forget": torch.from_numpy(forget), "clamp.retain": torch.from_numpy(retain)}
    for name, sae in saes.items():
        golden[name]["unlearning"] = {}
        for threshold in (0.01, 0.2):
            top = get_top_features(forget, retain, retain_threshold=threshold)
            chosen = [int(j) for j in top[:5]]
            tensors[f"{name}.clamped.{threshold}"] = anthropic_clamp_resid_SAE_features(
                x.clone(), None, sae, chosen, 25
            )
            golden[name]["unlearning"][str(threshold)] = [int(j) for j in top]


if __name__ == "__main__":
    draws = Draws()
    main()
