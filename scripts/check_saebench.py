"""SAEBench's own loop on the world that `saebench_fixture.py FOLDER` made, and every number beside ours.

Run with the Python of an environment that has SAEBench 0.6: `python scripts/check_saebench.py FOLDER`. SAEBench is as
it is but for: loading a model by hub name (here the folder's), and its draws, which come from one global stream there
and are given our streams here. Prints differences and times; ends with 1 when a number differs that should not.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from sae_sweeps.evaluation.draws import stream_seed  # noqa: E402

SEED = 42
TRAIN, TEST = 120, 60
"""Rows of a binary task, those of the fixture."""
NAME = "gemma-2-2b-it"
"""What SAEBench calls the model: it puts questions to no other name."""
LAYER = 2
SCR_CLASSES = (
    "male / female", "female_data_only", "professor / nurse", "nurse_data_only", "male_professor / female_nurse",
    "female_nurse_data_only",
)  # fmt: skip
CORE_TOLERANCE = 1e-5
"""Relative."""
FLOAT32 = 1e-5
"""What absorption's shares may differ by, since the models' last bits do; the least step of an accuracy is 600 times
that."""
CORE_IN_FLOAT64 = "core_float64"
"""Both sides in double precision: what is left of a difference then is one of definition."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--saes", nargs="*", help="only these, by their folders' names")
    parser.add_argument("--same-activations", action="store_true", help="SCR on our activations, not on its own")
    parser.add_argument("--only", nargs="*", choices=EVALUATIONS, help="only these evaluations")
    words = parser.parse_args()
    names = words.only or list(EVALUATIONS)
    if len(names) > 1:  # each in a process of its own: its peak of memory is its own, and one that fails ends no other
        again = [arg for arg in sys.argv[1:] if arg not in ("--only", *names)]
        return max(subprocess.run([sys.executable, __file__, *again, "--only", name]).returncode for name in names)
    name = names[0]
    world = World(words.folder.resolve(), name, words.saes)
    world.patch()
    if words.same_activations:
        world.give_activations()
    wall, cpu = time.monotonic(), time.process_time()
    theirs = EVALUATIONS[name](world)
    took = {
        "wall": round(time.monotonic() - wall, 1),
        "cpu": round(time.process_time() - cpu, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "saes": len(theirs),
    }
    (world.folder / f"theirs-{name}.json").write_text(json.dumps(took))
    print(f"{name}: {took}", flush=True)
    differ = False
    for sae, result in theirs.items():
        ours = json.loads((world.folder / "saes" / sae / "evals" / f"{name}.json").read_text())
        differ |= compare(name, sae, ours, result)
    return int(differ)


class World:
    """The folder, its model and its SAEs, as SAEBench wants them."""

    def __init__(self, folder: Path, evaluation: str, names: list[str] | None):
        from sae_lens import SAE
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder = folder
        self.work = folder / "saebench" / evaluation
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        for place in sorted((folder / "data").iterdir()):  # hub names resolve to folders under the current one
            (self.work / place.name).symlink_to(place)
        os.chdir(self.work)
        self.dtype = "float64" if evaluation == CORE_IN_FLOAT64 else "float32"
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        self.model = hooked(AutoModelForCausalLM, tokenizer, folder / "model", getattr(torch, self.dtype))
        self.saes = []
        for place in sorted(path for path in (folder / "saes").iterdir() if not names or path.name in names):
            sae = SAE.load_from_disk(place)
            sae.cfg.hook_layer = LAYER
            sae.cfg.hook_name = f"blocks.{LAYER}.hook_resid_post"
            self.saes.append((place.name, sae))
        self.data = ""
        self.label = ""
        self.frame: Any = None
        self.measured = "test"
        """The stream of test rows: "measured" while TPP measures, which draws its negatives anew."""
        self.sae = ""
        self.prepared: set[str] = set()

    def patch(self) -> None:
        """The model by its name, and a stream for each purpose in the place of the global one."""
        import sae_bench.evals.scr_and_tpp.main as scr_and_tpp
        import sae_bench.evals.sparse_probing.main as sparse_probing
        import sae_bench.evals.sparse_probing.probe_training as probe_training
        import sae_bench.sae_bench_utils.dataset_utils as dataset_utils
        from transformer_lens import HookedTransformer

        HookedTransformer.from_pretrained_no_processing = classmethod(lambda cls, *a, **k: self.model)
        prepare, train = probe_training.prepare_probe_data, probe_training.train_probe_gpu

        def prepared(acts: dict[str, Any], label: str, perform_scr: bool = False) -> Any:
            split = "train" if len(acts[label]) == TRAIN // 2 else self.measured
            self.label = label
            torch.manual_seed(stream_seed(SEED, "rows", self.data, label, split))
            return prepare(acts, label, perform_scr)

        def trained(*args: Any, l1_penalty: float | None = None, **kwargs: Any) -> Any:
            purpose = "probe" if l1_penalty is None else "ablation probe"
            torch.manual_seed(stream_seed(SEED, purpose, self.data, self.label))
            return train(*args, l1_penalty=l1_penalty, **kwargs)

        probe_training.prepare_probe_data, probe_training.train_probe_gpu = prepared, trained
        for module in (scr_and_tpp, sparse_probing):
            module.run_eval_single_dataset = self.named(module.run_eval_single_dataset)
        load = dataset_utils.load_dataset
        dataset_utils.load_dataset = lambda *a, **k: load(
            *a, **{key: value for key, value in k.items() if key not in ("languages", "trust_remote_code")}
        )

    def give_activations(self) -> None:
        """Our language model's activations of SCR's rows in the place of TransformerLens's: what is left is the SAE."""
        import sae_bench.evals.scr_and_tpp.main as module

        def given(*args: Any) -> Any:
            return tuple(self.dense(split) for split in ("train", "test"))

        module.get_dataset_activations = given

    def dense(self, split: str) -> dict[str, Any]:
        """Rows of the current pair [rows, context, d_in], zero at BOS and behind the text."""
        kept = load_file(self.folder / f"rows-{self.data.replace('/', '_')}-{split}.safetensors")
        ends = kept["length"].cumsum(0)
        rows = torch.zeros(len(kept["text"]), 128, kept["x"].shape[1])
        for row, text in enumerate(kept["text"].tolist()):
            n = int(kept["length"][text])
            rows[row, 1 : n + 1] = kept["x"][int(ends[text]) - n : int(ends[text])]
        return dict(zip(SCR_CLASSES, rows.split(kept["n"].tolist()), strict=True))

    def named(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def single(dataset: str, config: Any, *args: Any) -> Any:
            pair = args[-1] if getattr(config, "perform_scr", False) else None
            self.data = f"{dataset}_scr_{pair[0]}_{pair[1]}" if pair else dataset
            return run(dataset, config, *args)

        return single


def hooked(loader: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The GPTNeoX as TransformerLens 3's HookedTransformer, unprocessed."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights

    hf = loader.from_pretrained(folder, dtype=dtype)
    c = hf.config
    cfg = HookedTransformerConfig(
        d_model=c.hidden_size, d_head=c.hidden_size // c.num_attention_heads, n_heads=c.num_attention_heads,
        d_mlp=c.intermediate_size, n_layers=c.num_hidden_layers, n_ctx=c.max_position_embeddings, eps=c.layer_norm_eps,
        d_vocab=c.vocab_size, act_fn=c.hidden_act, positional_embedding_type="rotary", normalization_type="LN",
        parallel_attn_mlp=True, rotary_adjacent_pairs=False, use_attn_scale=True, rotary_base=10000,
        rotary_dim=c.hidden_size // c.num_attention_heads // 4, original_architecture="GPTNeoXForCausalLM",
        model_name=NAME, default_prepend_bos=True, tokenizer_prepends_bos=False, dtype=dtype,
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    model.load_state_dict(convert_neox_weights(hf, cfg), strict=False)
    return model.eval()


def results(folder: Path, saes: list[tuple[str, Any]]) -> dict[str, Any]:
    """What SAEBench wrote, by SAE."""
    return {name: json.loads((folder / f"{name}_custom_sae_eval_results.json").read_text()) for name, _ in saes}


def sparse_probing(world: World) -> dict[str, Any]:
    from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
    from sae_bench.evals.sparse_probing.main import run_eval

    config = SparseProbingEvalConfig(
        model_name=NAME, random_seed=SEED, probe_train_set_size=TRAIN, probe_test_set_size=TEST
    )
    config.llm_batch_size, config.llm_dtype = 32, "float32"
    run_eval(config, world.saes, "cpu", "out/sparse_probing", artifacts_path="artifacts/probing")
    return results(world.work / "out/sparse_probing", world.saes)


def scr_or_tpp(world: World, scr: bool) -> dict[str, Any]:
    import sae_bench.evals.scr_and_tpp.main as module
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig

    config = ScrAndTppEvalConfig(
        model_name=NAME, random_seed=SEED, perform_scr=scr, train_set_size=TRAIN, test_set_size=TEST
    )
    config.llm_batch_size, config.llm_dtype = 32, "float32"
    config.n_values = [2, 5, 10, 20, 50, 100, 500]
    accuracies: dict[str, dict[str, Any]] = {}
    ablate, single = module.perform_feature_ablations, module.run_eval_single_sae
    measure = module.get_probe_test_accuracy

    def measured(*args: Any, **kwargs: Any) -> Any:
        world.measured = "test" if scr else "measured"
        try:
            return measure(*args, **kwargs)
        finally:
            world.measured = "test"

    def noted(*args: Any) -> Any:
        found = ablate(*args)
        accuracies[world.sae][world.data] = found
        return found

    def named(config: Any, sae: Any, *args: Any, **kwargs: Any) -> Any:
        world.sae = next(name for name, one in world.saes if one is sae or one.W_dec.equal(sae.W_dec))
        accuracies[world.sae] = {}
        return single(config, sae, *args, **kwargs)

    module.perform_feature_ablations, module.run_eval_single_sae = noted, named
    module.get_probe_test_accuracy = measured
    module.run_eval(config, world.saes, "cpu", "out", artifacts_path="artifacts")
    module.perform_feature_ablations, module.run_eval_single_sae = ablate, single
    module.get_probe_test_accuracy = measure
    found = results(world.work / "out" / ("scr" if scr else "tpp"), world.saes)
    for name, result in found.items():
        result["eval_result_unstructured"] = (result["eval_result_unstructured"] or {}) | {
            "sae_sweeps": {"accuracies": accuracies[name]}
        }
    return found


def core(world: World) -> dict[str, Any]:
    """On our held-out contexts, which take the place of OpenWebText's."""
    import sae_bench.evals.core.main as module

    tokens = load_file(world.folder / "tokens.safetensors")["tokens"].long()

    class Store:
        context_size = tokens.shape[1]

        def __init__(self) -> None:
            self.at = 0

        def shuffle_input_dataset(self, seed: int) -> None:
            pass

        def reset_input_dataset(self) -> None:
            pass

        def get_batch_tokens(self, n: int) -> torch.Tensor:
            self.at += n
            return tokens[self.at - n : self.at]

    module.ActivationsStore.from_sae = staticmethod(lambda *a, **k: Store())
    for _, sae in world.saes:
        sae.cfg.model_name = NAME
    module.multiple_evals(
        world.saes, n_eval_reconstruction_batches=8, n_eval_sparsity_variance_batches=16, eval_batch_size_prompts=16,
        compute_featurewise_density_statistics=True, compute_featurewise_weight_based_metrics=True,
        exclude_special_tokens_from_reconstruction=True, output_folder="out/core", device="cpu", dtype=world.dtype,
    )  # fmt: skip
    return results(world.work / "out/core", world.saes)


def absorption(world: World) -> dict[str, Any]:
    """With our words, prompts and probes."""
    import pandas as pd
    import sae_bench.evals.absorption.common as common
    import sae_bench.evals.absorption.feature_absorption as feature_absorption
    import sae_bench.evals.absorption.feature_absorption_calculator as calculator
    import sae_bench.evals.absorption.k_sparse_probing as k_sparse
    import sae_bench.evals.absorption.main as module
    from sae_bench.evals.absorption.eval_config import AbsorptionEvalConfig
    from sae_bench.evals.absorption.probing import LinearProbe
    from sae_bench.evals.absorption.prompting import SpellingPrompt

    if "absorption" not in world.prepared:
        world.prepared.add("absorption")
        given = json.loads((world.folder / "letters.json").read_text())
        kept = load_file(world.folder / "letters.safetensors")
        place = world.work / "probes" / NAME / f"layer_{LAYER}"
        place.mkdir(parents=True)
        probe = LinearProbe(kept["weight"].shape[1], 26)
        probe.load_state_dict({"fc.weight": kept["weight"], "fc.bias": kept["bias"]})
        torch.save(probe, place / "probe.pth")
        for split in ("train", "test"):
            frame = pd.DataFrame({"token": given[split]})
            frame.to_csv(place / f"{split}_df.csv")
        arrays = {f"X_{split}": kept[f"{split}_x"].numpy() for split in ("train", "test")}
        arrays |= {f"y_{split}": np.array(given[f"{split}_letters"]) for split in ("train", "test")}
        np.savez(place / "data.npz", **arrays)

        prompts = dict(zip(given["words"], given["prompts"], strict=True))
        calculator.FeatureAbsorptionCalculator._build_prompts = lambda self, words: [
            SpellingPrompt(base=prompts[word], answer="", word=word) for word in words
        ]
        train = k_sparse.train_sparse_multi_probe

        def trained(*args: Any, **kwargs: Any) -> Any:
            torch.manual_seed(stream_seed(SEED, "feature probe"))
            return seeded_order(train, *args, **kwargs)

        k_sparse.train_sparse_multi_probe = trained
        for function in (module.run_k_sparse_probing_experiment, module.run_feature_absortion_experiment):
            replaced = functools.partial(
                function, probes_dir=world.work / "probes", **folders(function.__name__, world.work)
            )
            setattr(module, function.__name__, replaced)
        assert common and feature_absorption  # imported for their side effects on the artefact folders
    config = AbsorptionEvalConfig(
        model_name=NAME, random_seed=SEED, min_GT_probe_f1=0.05, min_feats_for_eval=5,
        precalc_k_sparse_probe_sae_acts=True,
    )  # fmt: skip
    config.llm_batch_size, config.llm_dtype = 64, "float32"
    (world.work / "out/absorption").mkdir(parents=True, exist_ok=True)
    module.run_eval(config, world.saes, "cpu", "out/absorption", force_rerun=True)
    return results(world.work / "out/absorption", world.saes)


def folders(name: str, work: Path) -> dict[str, Path]:
    k_sparse, absorbed = work / "k_sparse", work / "absorbed"
    if name == "run_k_sparse_probing_experiment":
        return {"experiment_dir": k_sparse}
    return {"experiment_dir": absorbed, "sparse_probing_experiment_dir": k_sparse}


def seeded_order(train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """SAEBench's training with rows in the order of one stream, which a DataLoader would draw from another."""
    import sae_bench.evals.absorption.probing as probing

    class Loader:
        def __init__(self, dataset: Any, batch_size: int, shuffle: bool):
            self.dataset, self.batch_size = dataset, batch_size

        def __len__(self) -> int:
            return -(-len(self.dataset) // self.batch_size)

        def __iter__(self) -> Iterator[Any]:
            for rows in torch.randperm(len(self.dataset)).split(self.batch_size):
                yield self.dataset[rows]

    before = probing.DataLoader
    probing.DataLoader = Loader
    try:
        return train(*args, **kwargs)
    finally:
        probing.DataLoader = before


def unlearning(world: World) -> dict[str, Any]:
    """With our contexts and questions, and ties between features in our order."""
    import sae_bench.evals.unlearning.main as module
    import sae_bench.evals.unlearning.utils.eval as single
    import sae_bench.evals.unlearning.utils.feature_activation as activation
    import sae_bench.evals.unlearning.utils.metrics as metrics
    from sae_bench.evals.unlearning.eval_config import UnlearningEvalConfig

    kept = load_file(world.folder / "unlearning.safetensors")
    questions = json.loads((world.folder / "questions.json").read_text())
    if "unlearning" not in world.prepared:
        world.prepared.add("unlearning")
        activation.get_shuffled_forget_retain_tokens = lambda *a, **k: (kept["forget"].long(), kept["retain"].long())
        argsort = np.ndarray.argsort

        def top_features(forget: np.ndarray, retain: np.ndarray, retain_threshold: float) -> np.ndarray:
            kept_F = np.where(retain >= retain_threshold, 0.0, forget)
            return argsort(kept_F, kind="stable")[::-1][: np.count_nonzero(kept_F)]

        single.get_top_features = top_features
        metrics.save_target_question_ids = lambda *a, **k: None  # they are given
        place = world.work / "artifacts/unlearning" / NAME / "data/question_ids/all"
        place.mkdir(parents=True)
        for name, ids in questions.items():
            full = name if name == "wmdp-bio" else f"mmlu-{name.replace('_', '-')}"
            np.savetxt(place / f"{full}_correct.csv", np.array(ids), fmt="%d")
        scores = module.get_unlearning_scores

        def lenient(df: Any) -> Any:
            df["all_side_effects_mcq"] = df["all_side_effects_mcq"] + (
                0.99 - 0.9
            )  # the fixture's eval.unlearning.side_effect
            return scores(df)

        module.get_unlearning_scores = lenient
    rows: dict[str, Any] = {}
    frame = world.frame = world.frame or module.get_metrics_df

    def noted(folder: str) -> Any:
        df = frame(folder)
        rows[Path(folder).parts[-3]] = df.copy()
        return df

    module.get_metrics_df = noted
    config = UnlearningEvalConfig(
        model_name=NAME, random_seed=SEED, retain_thresholds=[0.01, 0.05], dataset_size=24, seq_len=128
    )
    config.llm_batch_size, config.llm_dtype = 16, "float32"
    module.run_eval(config, world.saes, "cpu", "out/unlearning", force_rerun=True)
    assert metrics
    found = results(world.work / "out/unlearning", world.saes)
    for name, result in found.items():
        df = next(df for key, df in rows.items() if key.startswith(name))
        result["eval_result_unstructured"] = {
            f"multiplier{int(r.multiplier)}_nfeatures{int(r.n_features)}_retainthres{r.retain_thres}": {
                "forget": r["wmdp-bio"], "side": r.all_side_effects_mcq
            }
            for _, r in df.iterrows()
        }  # fmt: skip
    return found


EVALUATIONS: dict[str, Callable[[World], dict[str, Any]]] = {
    "core": core,
    CORE_IN_FLOAT64: core,
    "sparse_probing": sparse_probing,
    "tpp": lambda world: scr_or_tpp(world, False),
    "scr": lambda world: scr_or_tpp(world, True),
    "absorption": absorption,
    "unlearning": unlearning,
}


def compare(name: str, sae: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Print the largest differences in metrics and details. Returns whether one is too large."""
    of_core = name.startswith("core")
    tolerance = CORE_TOLERANCE if of_core else FLOAT32
    worst = []
    for part in ("eval_result_metrics", "eval_result_details", "eval_result_unstructured"):
        a, b = dict(leaves(theirs[part])), dict(leaves(ours[part]))
        shared = [key for key in a if key in b and isinstance(a[key], int | float) and isinstance(b[key], int | float)]
        missing = [key for key, value in a.items() if key not in b and value is not None]
        gaps = {key: abs(a[key] - b[key]) / (max(abs(a[key]), 1e-12) if of_core else 1) for key in shared}
        largest = max(gaps, key=lambda key: gaps[key]) if gaps else None
        n_off = sum(gap > tolerance for gap in gaps.values())
        worst.append(n_off + len(missing))
        where = (
            f", largest {gaps[largest]:.2e} at {largest}: {a[largest]} and {b[largest]}" if largest and n_off else ""
        )
        print(f"{name} {sae} {part.removeprefix('eval_result_')}: {len(shared)} numbers, {n_off} differ{where}"
              + (f"; ours lack {missing[:3]}" if missing else ""))  # fmt: skip
    return any(worst)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            key = value.get("dataset_name", value.get("first_letter", number)) if isinstance(value, dict) else number
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, node


if __name__ == "__main__":
    sys.exit(main())
