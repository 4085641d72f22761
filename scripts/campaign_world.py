"""The files that `campaign_configs` names in its commands: models, texts, SAEs, runs, notes and components, sound and
broken ones, made once in a folder."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

PROJECT = Path(__file__).parents[1]
SECRETS = {
    "WANDB_API_KEY": "5ec4e7d" + "0" * 33,
    "HF_TOKEN": "hf_seCretsEcretSecretsecRetSecretsec",
    "HUGGING_FACE_HUB_TOKEN": "hf_seCretsEcretSecretsecRetSecretsec",
}
"""Tokens in the environment of every command; with PASSWORD they may be in no file and no output."""
PASSWORD = "passW0rdinaUrl"
TEXT = "the cat sat on a mat and ran to the old house by the river where it slept all day "


def environment(world: Path) -> dict[str, str]:
    """What every command runs in: no hub, no cache but the world's own, and tokens that must not be printed."""
    left = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return {
        **left,
        **SECRETS,
        "OMP_NUM_THREADS": "1",
        "SAE_SWEEPS_LOCAL": "none",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(world / "hub"),
        "HF_HUB_CACHE": str(world / "hub" / "hub"),
        "WANDB_MODE": "offline",
        "COLUMNS": "120",
    }


def make_world(world: Path) -> None:
    """Write everything; a minute, most of it the runs."""
    _texts(world / "text")
    _models(world / "models")
    shutil.copytree(PROJECT / "examples" / "own_components", world / "own")
    _components(world / "broken")
    _runs(world)
    _saes(world)
    _notes(world / "notes")


def _texts(folder: Path) -> None:
    folder.mkdir()
    rows = [
        {"text": f"{i} {TEXT * 3}", "label": "ab"[i % 2], "n": i, "other": None if i else {"x": 1}} for i in range(99)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    plain = "\n\n".join(f"{i} {TEXT * 3}" for i in range(99))
    written: dict[str, bytes] = {
        "plain.txt": plain.encode(),
        "naïve 日本, v2.txt": plain.encode(),
        "${x}.txt": plain.encode(),
        "utf16.txt": plain.encode("utf-16"),
        "latin.txt": "Größe und Maß ".encode("latin-1") * 200,
        "empty.txt": b"",
        "blank.txt": b" \n\n ",
        "zero.txt": b"\0" * 5000,
        "short.txt": b"three words only",
        "rows.jsonl": lines.encode(),
        "rows.json": json.dumps(rows).encode(),
        "rows.jsonl.gz": gzip.compress(lines.encode()),
        "cut.jsonl.gz": gzip.compress(lines.encode())[:-40],
        "gzip.jsonl": gzip.compress(lines.encode()),
        "cut.jsonl": lines[:-30].encode(),
        "broken.jsonl": (lines[:2000] + "{]\n" + lines).encode(),
        "scalars.jsonl": b"1\n2\n",
        "object.json": b'{"text": "one object"}',
        "deep.jsonl": b'{"text": "a", "x": ' + b"[" * 100000 + b"]" * 100000 + b"}\n",
        "nulls.jsonl": lines.replace('"text": "1', '"text": null, "was": "1').encode(),
        "surrogate.jsonl": lines.encode() + b'{"text": "\\ud800 ' + TEXT.encode() + b'"}\n',
        "bomb.txt.gz": gzip.compress(b"a" * 50_000_000),
        "rows.parquet": b"PAR1 broken",
        "unknown.xyz": b"?",
        "dead.jsonl": b"",
    }  # fmt: skip
    for name, content in written.items():
        (folder / name).write_bytes(content)
    (folder / "dead.jsonl").unlink()
    (folder / "dead.jsonl").symlink_to("nowhere.jsonl")
    for name in ("texts", "mixed", "nothing"):
        (folder / name).mkdir()
    for number in range(3):
        (folder / "texts" / f"{number}.txt").write_text(f"{number}\n\n{plain}")
    shutil.copy(folder / "plain.txt", folder / "mixed")
    shutil.copy(folder / "rows.jsonl", folder / "mixed")
    import datasets
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"text": row["text"], "label": row["label"]} for row in rows])
    pyarrow.parquet.write_table(table, folder / "good.parquet")
    (folder / "cut.parquet").write_bytes((folder / "good.parquet").read_bytes()[:-100])
    saved = datasets.Dataset(table)
    saved.save_to_disk(str(folder / "saved"))
    saved.save_to_disk(str(folder / "cut_arrow"))
    file = next((folder / "cut_arrow").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:300])
    with pyarrow.output_stream(str(folder / "plain.txt.zst"), compression="zstd") as out:
        out.write(plain.encode())


def _models(folder: Path) -> None:
    sys.path.insert(0, str(PROJECT))
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from tests.conftest import save_language_model

    torch.manual_seed(0)
    sizes = dict(vocab_size=384, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    config = GPTNeoXConfig(**sizes, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, initializer_range=0.3)
    tiny = save_language_model(GPTNeoXForCausalLM(config), folder / "tiny")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, folder / name))

    config_of = json.loads((tiny / "config.json").read_text())
    (copy("no_weights") / "model.safetensors").unlink()
    (copy("no_tokenizer") / "tokenizer.json").unlink()
    (copy("no_config") / "config.json").unlink()
    (copy("bad_config") / "config.json").write_text("{")
    (copy("unknown_family") / "config.json").write_text(json.dumps(config_of | {"model_type": "mine"}))
    (copy("remote") / "config.json").write_text(
        json.dumps(
            config_of | {"model_type": "mine", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
        )
    )
    (folder / "remote" / "evil.py").write_text(f"open({str(folder / 'EXECUTED')!r}, 'w')\nclass C: ...\nclass M: ...\n")
    (copy("huge") / "config.json").write_text(json.dumps(config_of | {"hidden_size": 2**40}))
    (copy("other_size") / "config.json").write_text(json.dumps(config_of | {"hidden_size": 64}))
    weights = copy("cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    header = copy("header") / "model.safetensors"
    header.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    pickled = copy("pickled")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Written(str(folder / "EXECUTED"))))
    notes = json.loads((copy("template") / "tokenizer_config.json").read_text())
    (folder / "template" / "tokenizer_config.json").write_text(
        json.dumps(notes | {"chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"})
    )
    (folder / "nothing").mkdir()
    (folder / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 100)


class Written:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def _components(folder: Path) -> None:
    bodies = {
        "syntax": "def broken(:\n",
        "raises": "raise ValueError('no')\n",
        "exits": "import sys; sys.exit(3)\n",
        "empty": "",
        "no_class": "x = 1\n",
        "not_a_class": "Mine = 3\n",
    }
    for group in ("penalty", "architecture", "schedule", "eval", "data"):
        (folder / group).mkdir(parents=True)
        for name, body in bodies.items():
            (folder / group / f"{name}.py").write_text(body)
            (folder / group / f"{name}.yaml").write_text(f"_target_: {name}.Mine\n")
        (folder / group / "tagged.yaml").write_text("_target_: !!python/object/apply:os.system [echo EXECUTED]\n")
        (folder / group / "list.yaml").write_text("- a\n")
        (folder / group / "stdlib.yaml").write_text("_target_: os.system\n")
        (folder / group / "up.yaml").write_text("_target_: ../../evil.Mine\n")
    (folder / "cluster").mkdir()
    (folder / "cluster" / "mine.yaml").write_text("defaults: [local, _self_]\nname: mine\nprocesses: 1\n")
    (folder / "cluster" / "odd.yaml").write_text("name: odd\n")
    (folder / "model").mkdir()
    (folder / "model" / "small.yaml").write_text("defaults: [synthetic, _self_]\nname: small\nd_in: 16\n")
    (folder / "experiment").mkdir()
    for name, text in {
        "two": "# @package _global_\nvariants:\n  a: penalty=ortho\n  b: penalty=none\n",
        "no_package": "variants:\n  a: penalty=ortho\n",
        "unknown": "# @package _global_\nvariants:\n  a: penalty=orto\n",
        "list": "# @package _global_\nvariants: [penalty=ortho]\n",
        "tag": "# @package _global_\ntitle: !!python/name:os.system\n",
    }.items():
        (folder / "experiment" / f"{name}.yaml").write_text(text)


def _launch(world: Path, *words: str) -> None:
    command = [sys.executable, str(PROJECT / "launch.py"), *words, f"outputs={world / 'outputs'}", "report=false"]
    done = subprocess.run(command, cwd=world, env=environment(world), capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


SYNTHETIC = (
    "model=synthetic",
    "model.d_in=16",
    "d_sae=64",
    "num_tokens=2048",
    "batch_size=128",
    "train.held_out_tokens=0",
)


def _runs(world: Path) -> None:
    """`outputs/`, and copies of it with one damage each."""
    _launch(world, "-m", *SYNTHETIC, "k=4", "penalty=none,ortho")
    _launch(world, *SYNTHETIC, "architecture=jumprelu", "lr=1e12")
    small = ("k=4", "d_sae=64", "num_tokens=1024", "batch_size=128", "data.context=32", "train.held_out_tokens=64")
    quick = ("eval=core", "eval.recon_batches=1", "eval.sparsity_batches=1", "eval.batch_size=2")
    _launch(world, *small, *quick, f"model={world / 'models' / 'tiny'}", f"data={world / 'text' / 'rows.jsonl'}")
    runs = sorted((world / "outputs" / "runs").iterdir())
    language = next(folder for folder in runs if "rows.jsonl" in (folder / "config.yaml").read_text())
    (world / "run").symlink_to(language)
    for name, file, content in (
        ("results_cut", "results.json", b'{"run_id": "'),
        ("results_list", "results.json", b"[]"),
        ("results_odd", "results.json", b'{"metrics": {"fvu": "much"}, "config": {"k": [1]}}'),
        ("status_cut", "status.json", b""),
        ("config_cut", "config.yaml", b"model: [\n"),
        ("config_tag", "config.yaml", b"model: !!python/object/apply:os.system [echo EXECUTED]\n"),
        ("metrics_cut", "metrics.jsonl", b"{]\n{}\n"),
        ("weights_cut", "sae/sae_weights.safetensors", b"\xff" * 64),
        ("cfg_cut", "sae/cfg.json", b"null"),
        ("newer", "status.json", b'{"state": "completed", "format_version": 99}'),
        ("summary_cut", "evals/core.summary.json", b"[1]"),
        ("identity_cut", "identity.json", b"[1]"),
    ):
        copy = world / "damaged" / name / "runs" / language.name
        shutil.copytree(language, copy)
        (copy / file).write_bytes(content)
    for name, content in (
        ("manifest_cut", b"{"),
        ("manifest_odd", b'{"runs": [{"run": 1}]}'),
        ("manifest_list", b"[]"),
    ):
        sweep = next(folder for folder in (world / "outputs" / "sweeps").iterdir())
        copy = world / "damaged" / name / "sweeps" / sweep.name
        shutil.copytree(sweep, copy, symlinks=True)
        (copy / "manifest.json").write_bytes(content)


def _saes(world: Path) -> None:
    """SAEs of other libraries, and broken ones."""
    good = world / "saes" / "good"
    shutil.copytree((world / "run").resolve() / "sae", good)
    weights, cfg = load_file(good / "sae_weights.safetensors"), json.loads((good / "cfg.json").read_text())

    def copy(name: str) -> Path:
        return Path(shutil.copytree(good, world / "saes" / name))

    save_file(
        {k: torch.full_like(w, float("nan")) for k, w in weights.items()}, copy("nan") / "sae_weights.safetensors"
    )
    save_file({k: w[..., :3].clone() for k, w in weights.items()}, copy("shapes") / "sae_weights.safetensors")
    (copy("no_cfg") / "cfg.json").unlink()
    for name, change in {
        "unknown_architecture": {"architecture": "mine"},
        "no_names": {"metadata": {}},
        "odd_hook": {"metadata": cfg.get("metadata", {}) | {"hook_name": "blocks.0.hook_nothing"}},
        "odd_dtype": {"dtype": "float3"},
        "negative": {"d_sae": -1, "k": "many"},
        "path": {"metadata": cfg.get("metadata", {}) | {"model_name": "../../../../etc/passwd"}},
        "url": {"metadata": cfg.get("metadata", {}) | {"model_name": f"https://me:{PASSWORD}@hub/x"}},
    }.items():
        (copy(name) / "cfg.json").write_text(json.dumps(cfg | change))
    scope = world / "saes" / "scope"
    scope.mkdir()
    W_enc, W_dec, b_enc, b_dec = (weights[name].numpy() for name in ("W_enc", "W_dec", "b_enc", "b_dec"))
    np.savez(scope / "params.npz", W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec, threshold=np.abs(b_enc))
    objects = world / "saes" / "objects"
    objects.mkdir()
    np.savez(objects / "params.npz", W_enc=np.array([Written(str(world / "EXECUTED"))], dtype=object))
    bomb = world / "saes" / "bomb"
    bomb.mkdir()
    np.savez_compressed(bomb / "params.npz", W_enc=np.zeros((4096, 4096), np.float32))
    pickled = world / "saes" / "pickled"
    pickled.mkdir()
    (pickled / "ae.pt").write_bytes(pickle.dumps(Written(str(world / "EXECUTED"))))
    (pickled / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')


def _notes(folder: Path) -> None:
    folder.mkdir()
    notes = "## Run 1: TopK\n\nResults: {'fvu': 0.3, 'l0': 32}\n\nDescription: a run\n"
    for name, content in {
        "good.txt": notes,
        "code.txt": notes.replace("0.3", "__import__('os').system('echo EXECUTED')"),
        "deep.txt": notes.replace("0.3", "[" * 5000 + "]" * 5000),
        "large.txt": notes.replace("0.3", "9**9**9"),
        "empty.txt": "",
        "none.txt": "words alone\n",
        "saebench.json": json.dumps({"eval_type_id": "core", "eval_result_metrics": {"a": {"l0": 3.0}}}),
        "odd.json": '{"eval_result_metrics": {"a": [1, {"b": null}]}, "eval_config": 3}',
        "list.json": "[1, 2]",
        "deep.json": "[" * 100000,
    }.items():
        (folder / name).write_text(content)
