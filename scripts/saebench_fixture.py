"""A small world in which SAEBench and this project can be compared: `python scripts/saebench_fixture.py FOLDER`.

Makes, in FOLDER: `model/`, the built-in language model with the three turn tokens that SAEBench's prompts need;
`data/`, SAEBench's data sets under their own names with made-up rows; `saes/`, eight SAEs trained on the model (TopK
and JumpReLU); and evaluates them: `saes/*/evals/`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))

from sae_sweeps.builtin import MODEL_FOLDER  # noqa: E402
from sae_sweeps.evaluation.first_letters import vocabulary  # noqa: E402
from sae_sweeps.evaluation.saebench_data import AMAZON, ATTRIBUTES, BIAS, CLASSES, NAMED, PAIRS, SUBJECTS  # noqa: E402

WORDS_PER_TEXT = 40
ROWS = {"train": 260, "test": 140}
"""Rows of each class and attribute."""
SIZES = {"train": 120, "test": 60}
"""Rows of a binary task."""
TRAINING = "num_tokens=204800 d_sae=1024 eval=none layer=2".split()
SAES = [
    *(f"architecture=topk k={k} seed={seed}".split() for k in (16, 32) for seed in (0, 1)),
    *(f"architecture=jumprelu target_l0={l0} seed={seed}".split() for l0 in (16, 32) for seed in (0, 1)),
]
EVALUATIONS = ("core", "sparse_probing", "tpp", "scr", "absorption", "unlearning")
WORDS = [
    f"eval.probing.train_rows={SIZES['train']}", f"eval.probing.test_rows={SIZES['test']}",
    f"eval.ablation.train_rows={SIZES['train']}", f"eval.ablation.test_rows={SIZES['test']}",
    "eval.absorption.min_probe_f1=0.05", "eval.absorption.min_letters=5", "eval.absorption.max_words=1200",
    "eval.unlearning.contexts=24", "eval.unlearning.context=128", "eval.unlearning.side_effect=0.9",
    "eval.unlearning.all_orders=false", "eval.unlearning.model=same",
    "eval.selection=test", "eval.probing.k_values=[1,2,5]",  # what SAEBench does
    "eval.unlearning.retain_thresholds=[0.01,0.05]", "eval.recon_batches=8", "eval.sparsity_batches=16",
    "eval.llm_batch=32", "device=cpu",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    if not (folder / "saes").exists():
        make_model(folder / "model")
        make_data(folder / "data")
        make_saes(folder)
    hand_over(folder)
    evaluate(folder)
    core_in_float64(folder)


def make_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"], "bos_token": "<bos>"}
    )
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_data(folder: Path) -> None:
    """Rows of words whose frequencies depend on the class and on the second attribute."""
    from transformers import AutoTokenizer

    words = [word.strip() for word in vocabulary(AutoTokenizer.from_pretrained(MODEL_FOLDER)) if len(word) > 3]
    rng = random.Random(0)

    def texts(n: int, *kinds: str) -> list[str]:
        own = [random.Random(kind).sample(words, 30) for kind in kinds]
        return [
            " ".join(
                rng.choice(rng.choice(own)) if rng.random() < 0.25 else rng.choice(words) for _ in range(WORDS_PER_TEXT)
            )
            for _ in range(n)
        ]

    for name, text, column, second in (
        (BIAS, "hard_text", "profession", "gender"),
        (AMAZON, "text", "category", "rating"),
    ):
        classes = {int(c) for data, found in CLASSES.items() if data.split("_class_set")[0] == name for c in found}
        paired = {
            NAMED[pair.dataset].index(label)
            for pair in PAIRS
            if pair.dataset.startswith(name)
            for label in pair.classes
        }
        attributes = [value for _, value in ATTRIBUTES[name]]
        for split, n in ROWS.items():
            rows: list[dict[str, Any]] = [
                {text: t, column: label, second: attribute}
                for label in sorted(classes | paired)
                for attribute in attributes
                for t in texts(n, f"{name}{label}", f"{name}{attribute}")
            ]
            rng.shuffle(rows)
            write(folder / name, split, rows)
    for split, n in ROWS.items():
        news = [{"text": t, "label": label} for label in range(4) for t in texts(n, f"news{label}")]
        write(folder / "fancyzhx/ag_news", split, news)
    code = [
        {"code": t * 3, "language": language}
        for _ in range(ROWS["train"] + ROWS["test"])
        for language in CLASSES["codeparrot/github-code"]
        for t in texts(1, language)
    ]
    write(folder / "codeparrot/github-code", "train", code)
    pairs = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
    for language, pair in pairs.items():
        rows = [{"translation": {language: t, "other": ""}} for t in texts(ROWS["train"] + ROWS["test"], language)]
        write(folder / "Helsinki-NLP/europarl", "train", rows, pair)
    write(folder / "wikitext", "test", [{"text": t} for t in texts(300, "retain")], "wikitext-2-raw-v1")
    forget = folder / "cais/wmdp-corpora"
    forget.mkdir(parents=True)
    lines = [json.dumps({"text": t}) for t in texts(300, "forget")]
    (forget / "bio-forget-corpus.jsonl").write_text("\n".join(lines))
    for subject in SUBJECTS:
        bio = subject == "wmdp-bio"
        questions = [
            {"question": q, "choices": texts(1, "a")[0].split()[:4], "answer": rng.randrange(4)}
            for q in texts(120 if bio else 60, "forget" if bio else subject)
        ]
        write(folder / ("cais/wmdp" if bio else "cais/mmlu"), "test", questions, subject)


def write(folder: Path, split: str, rows: list[dict[str, Any]], config: str | None = None) -> None:
    """One split of a data set in the hub's layout, with a card that names its configurations."""
    place = folder / (config or "data")
    place.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(place / f"{split}-00000-of-00001.parquet")
    if config:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        listed = "".join(
            f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {name}/{split}-*\n" for name in names
        )
        (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")


def make_saes(folder: Path) -> None:
    for number, words in enumerate(SAES):
        command = [sys.executable, "launch.py", f"model={folder / 'model'}", f"outputs={folder / 'outputs'}"]
        subprocess.run([*command, *TRAINING, *words], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
        done = sorted((folder / "outputs/runs").iterdir(), key=lambda run: run.stat().st_mtime)[-1]
        shutil.copytree(done / "sae", folder / "saes" / f"{words[0].partition('=')[2]}_{number}")


def slug(name: str) -> str:
    return name.replace("/", "_")


def hand_over(folder: Path) -> None:
    """What SAEBench is given in the place of its own draws: contexts, words, prompts, probes and questions."""
    from safetensors.torch import save_file

    import sae_sweeps.evaluation.first_letters as letters
    from sae_sweeps.activations.contexts import held_out_contexts
    from sae_sweeps.cli.compose import compose_points
    from sae_sweeps.config.evaluations import UnlearningConfig
    from sae_sweeps.config.run import run_config
    from sae_sweeps.evaluation.unlearning import corpus_tokens, right_questions
    from sae_sweeps.runs.session import RunSession

    shutil.rmtree(folder / "handed", ignore_errors=True)  # made anew, or the prompts would not be seen
    where = [f"eval.data={folder / 'data'}", f"model={folder / 'model'}", "layer=2", f"outputs={folder / 'handed'}"]
    run = run_config(compose_points([*where, *WORDS])[0].cfg)
    shared = RunSession(torch.device("cpu")).shared(run, folder / "handed")
    tokens = held_out_contexts(run.model, run.data, shared.lm, 16 * 24)
    save_file({"tokens": tokens.contiguous()}, folder / "tokens.safetensors")

    for pair in shared.source.pairs:
        for split in ("train", "test"):
            rows = shared.rows(pair, split)
            kept = {"x": rows.x_ND, "length": rows.length_T, "text": rows.text_R}
            kept["n"] = torch.tensor(list(rows.n_by_class.values()))
            save_file(
                {k: t.contiguous() for k, t in kept.items()}, folder / f"rows-{slug(pair.name)}-{split}.safetensors"
            )

    prompts_seen: list[str] = []
    at_words = letters.at_words
    letters.at_words = lambda prompts, *rest: (
        prompts_seen.clear(),
        prompts_seen.extend(prompts),
        at_words(prompts, *rest),
    )[2]
    found = letters.first_letters(shared)
    letters.at_words = at_words
    words = letters.vocabulary(shared.lm.tokenizer)
    random.Random(letters.stream_seed(42, "words")).shuffle(words)
    words = words[:1200]
    cut = int(len(words) * letters.TRAIN_SHARE)
    texts = {"train": words[:cut], "test": words[cut:], "words": found.words, "prompts": prompts_seen}
    numbers = {"train_letters": found.train_letter_N.tolist(), "test_letters": found.test_letter_N.tolist()}
    (folder / "letters.json").write_text(json.dumps(texts | numbers))
    tensors = {
        "weight": found.weight_26D,
        "bias": found.bias_26,
        "train_x": found.train_x_ND,
        "test_x": found.test_x_ND,
    }
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "letters.safetensors")

    corpora = {split: corpus_tokens(shared, split).contiguous() for split in ("forget", "retain")}
    save_file(corpora, folder / "unlearning.safetensors")
    right = {
        q.name: right_questions(q, shared).nonzero()[:, 0].tolist()
        for q in shared.source.questions(shared.lm, UnlearningConfig(all_orders=False), 42, shared.source.question_sets)
    }
    (folder / "questions.json").write_text(json.dumps(right))


def command(folder: Path, saes: Path, outputs: Path, names: Sequence[str] = EVALUATIONS) -> list[str]:
    """`evaluate` over the SAEs of a folder, by the settings of this world."""
    where = [f"eval.data={folder / 'data'}", f"model={folder / 'model'}", "data=builtin", f"outputs={outputs}"]
    words = [sys.executable, "-m", "sae_sweeps", "evaluate", *sorted(map(str, saes.iterdir())), *where, *WORDS]
    return [*words, f"eval.evaluations=[{','.join(names)}]"]


def evaluate(folder: Path) -> None:
    """`saes/*/evals/`, made anew."""
    for evals in folder.glob("saes/*/evals"):
        shutil.rmtree(evals)
    subprocess.run(command(folder, folder / "saes", folder / "evaluated"), cwd=PROJECT, check=True)


def exact_rotary(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary angles in x's precision: transformers rounds them to float32 in any."""
    from transformers import AutoConfig

    from sae_sweeps.builtin import MODEL_FOLDER

    cfg = AutoConfig.from_pretrained(MODEL_FOLDER)
    width = int(cfg.hidden_size // cfg.num_attention_heads * cfg.rope_parameters["partial_rotary_factor"])
    angle = position_ids[..., None] * cfg.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2).double() / width)
    both = torch.cat([angle, angle], dim=-1)
    return both.cos().to(x.dtype), both.sin().to(x.dtype)


def core_in_float64(folder: Path) -> None:
    """`saes/*/evals/core_float64.json`: the core evaluation with model and SAEs in double precision."""
    from safetensors.torch import load_file

    from sae_sweeps.activations.language_model import LanguageModel, load_language_model
    from sae_sweeps.architectures import saelens
    from sae_sweeps.cli.compose import compose_points
    from sae_sweeps.config.run import run_config
    from sae_sweeps.evaluation.core import evaluate_core
    from sae_sweeps.storage.files import write_json

    run = run_config(compose_points([f"model={folder / 'model'}", "layer=2", *WORDS])[0].cfg)
    single = load_language_model(run.model, "cpu")
    single.model.base_model.rotary_emb.forward = exact_rotary
    lm = LanguageModel(single.model.double(), single.tokenizer)
    saes = {path.name: saelens.load(path).to(dtype=torch.float64) for path in (folder / "saes").iterdir()}
    tokens_NL = load_file(folder / "tokens.safetensors")["tokens"]
    for name, result in evaluate_core(saes, run.eval, lm, run.layer, tokens_NL).items():
        write_json(folder / "saes" / name / "evals" / "core_float64.json", result.to_json())


if __name__ == "__main__":
    main()
