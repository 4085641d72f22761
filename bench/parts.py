"""The parts of the bench, most important first. Each runs in a process of its own until its limit."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.contenders import SPARSITY
from bench.data import Shape
from bench.results import Results
from bench.rounds import ENDED, Contender, Measured, interleaved
from bench.setting import ROOT, Setting

LABELS = {"sparsify": "sparsify", "SAELens": "sae_lens", "dictionary_learning": "dictionary_learning"}
"""The other libraries' names, and those of their contenders."""
ORTHO = "penalty=ortho lambda2_max=0.1 base_threshold=0.1"
PRODUCT = "encoder product alone, as torch runs it"
SELECTIONS = ("plain", "bounded", "bfloat16")
"""Ways to select features that are measured beside the default one."""
PLACES = {"cuda": (0.0, 0.5, 0.99), "cpu": (0.0, 0.25, 0.5, 0.75, 0.9, 0.99)}
"""Where in the run `ortho` is measured, as shares of it."""
PENALTIES: dict[str, dict[str, Any]] = {
    "strict_ortho": {"words": "penalty=strict_ortho lambda2_max=0.1"},
    "decorrelation": {"words": "penalty=decorrelation lambda2_max=0.1", "first_step": 0.99},
    "ortsae": {"words": "penalty=ortsae"},
    "adaptive_sharing": {"words": "penalty=adaptive_sharing", "first_step": 0.5},
}
"""Steps with a penalty, each against the step without; `first_step` is where in the run they are taken."""


def step(setting: Setting, results: Results) -> None:
    """Whole TopK training steps beside the peers'."""
    shapes = setting.step_shapes()
    for number, shape in enumerate(shapes):
        contenders = [
            Contender(PRODUCT, "encoder_product", shape),
            Contender("**ours**", "ours", shape),
            Contender("ours, `train.kernels=reference`", "ours", shape, {"words": "train.kernels=reference"}),
            *(
                Contender(f"ours, `train.selection={way}`", "ours", shape, {"words": f"train.selection={way}"})
                for way in SELECTIONS
            ),
            *(Contender(label, peer, shape) for label, peer in LABELS.items()),
            Contender("plain PyTorch, fused Adam", "plain", shape),
            Contender("the same through torch.compile", "plain", shape, {"compile": True}),
        ]
        if number >= len(setting.shapes()):  # where memory and time allow only what is compared
            contenders = [c for c in contenders if c.name != "plain" and "reference" not in c.label]
        steps = 20 if setting.device == "cuda" and not setting.small else 1
        found, left_out = interleaved(contenders, setting, steps, seconds=setting.left() / (len(shapes) - number))
        title, flop = f"TopK, {shape}", 2 * shape.batch * shape.d_in * shape.d_sae  # of the encoder, the dense product
        for label, measured in found.items():
            row: dict[str, object] = {
                "": label, "ms per step": 1e3 * measured.median, "tokens/s": shape.batch / measured.median,
                "time against ours": measured.times(found["**ours**"]) if "**ours**" in found else "",
                "against the encoder product": measured.times(found[PRODUCT]) if PRODUCT in found else "",
            }  # fmt: skip
            if setting.device == "cuda" and label == "**ours**":
                row["derived ms"] = sum(1e3 * seconds for _, seconds in derived(shape))
            if setting.gflops:
                row["encoder's share of the matrix rate"] = flop / measured.median / 1e9 / setting.gflops
            results.add(title, row | {"peak GB": measured.peak_gb, "rounds": len(measured.seconds)})
        _left_out(results, title, left_out)


def derived(shape: Shape) -> list[tuple[str, float]]:
    """Parts of our TopK step and their seconds by this GPU's data sheet, in bfloat16 (scripts/derived_times.py)."""
    from sae_sweeps.kernels import cost
    from scripts.derived_times import Step

    device = cost.device_of(None)
    parts = Step(shape.batch, shape.d_in, shape.d_sae, shape.k).after(device)
    return [(part.name, part.seconds(device)) for part in parts]


def penalty(setting: Setting, results: Results) -> None:
    """What each penalty adds to the step without it; five steps a turn, as a run's weights stay in the cache."""
    places = PLACES[setting.device]
    over_p: dict[str, dict[str, Any]] = {f"ortho, p = {p:g}": {"words": ORTHO, "first_step": p} for p in places}
    for number, shape in enumerate(shapes := setting.shapes()):
        ways = over_p | (PENALTIES if number == 0 else {})
        contenders = [Contender("without", "ours", shape)]
        contenders += [Contender(label, "ours", shape, settings) for label, settings in ways.items()]
        steps = 1 if setting.small else 5
        found, left_out = interleaved(contenders, setting, steps, seconds=setting.left() / (len(shapes) - number))
        without = found.get("without", Measured(""))
        for label, m in found.items():
            row: dict[str, object] = {"penalty": label, "ms per step": 1e3 * m.median}
            if without.seconds:
                row |= {"added": f"{m.times(without) - 1:+.0%}", "GB added": m.peak_gb - without.peak_gb}
            results.add(f"TopK, {shape}", row)
        if without.seconds and over_p.keys() <= found.keys():
            added = [found[name].times(without) - 1 for name in over_p]
            row = {"penalty": "ortho, mean over p", "added": f"{mean_over(places, added):+.0%}"}
            results.add(f"TopK, {shape}", row)
        _left_out(results, f"TopK, {shape}", left_out, "penalty")


def mean_over(places: Sequence[float], values: Sequence[float]) -> float:
    """Mean over a run of what was measured at some places of it, between which it is taken to be linear."""
    pieces = zip(pairwise(places), pairwise(values), strict=True)
    return sum((b - a) * (u + v) / 2 for (a, b), (u, v) in pieces) / (places[-1] - places[0])


def architectures(setting: Setting, results: Results) -> None:
    """Each architecture by the fast kernels and by the plain formulas, and TopK with its auxiliary loss."""
    shape, aux = setting.shape(), "topk with its auxiliary loss"
    names = ["topk", aux, *(name for name in SPARSITY if name != "topk")]
    together = len(names) if setting.device == "cuda" else 1  # a CPU's memory holds fewer
    for start in range(0, len(names), together):
        contenders = [
            Contender(f"{name} {way}", "ours", shape, {"architecture": name, "words": f"train.kernels={way}"})
            for name in names[start : start + together]
            for way in ("auto", "reference")
        ]
        for contender in contenders:
            if contender.settings["architecture"] == aux:
                contender.settings["architecture"] = "topk"
                contender.settings["words"] += " architecture.aux_weight=0.03125"
        seconds = setting.left() * together / (len(names) - start)
        found, left_out = interleaved(contenders, setting, 1, 6, seconds, max(3, setting.rounds // 2))
        for name in names[start : start + together]:
            if f"{name} auto" in found and f"{name} reference" in found:
                fast, plain = found[f"{name} auto"], found[f"{name} reference"]
                row = {
                    "architecture": name, "ms per step": 1e3 * fast.median, "plain formulas, ms": 1e3 * plain.median,
                    "times as fast": plain.times(fast), "peak GB": fast.peak_gb,
                }  # fmt: skip
                results.add(f"{shape}", row)
        _left_out(results, f"{shape}", left_out, "architecture")


def _left_out(results: Results, table: str, left_out: dict[str, str], column: str = "") -> None:
    """Add the contenders that were not measured. Raises RuntimeError where one of them is not another library."""
    for label, why in left_out.items():
        results.add(f"{table}; left out", {column: label, "why": why})
    broken = {label: why for label, why in left_out.items() if why.startswith(ENDED) and label not in LABELS}
    if broken:
        raise RuntimeError("; ".join(f"{label}: {why}" for label, why in broken.items()))


def harvest(setting: Setting, results: Results) -> None:
    """The harvest against the bare forward pass, by scripts/measure_harvest.py."""
    command = [sys.executable, "-m", "scripts.measure_harvest", "sae_sweeps/builtin/model", "--layer", "2"]
    command += ["--rounds", str(setting.rounds)]
    out = subprocess.run(command, cwd=ROOT, env=setting.environment(), capture_output=True, text=True, check=True)
    for name, ms, ratio in re.findall(r"^(\w+) +([\d.]+) ms +([\d.]+) x bare", out.stdout, re.M):
        row = {"way": name, "ms": float(ms), "against the bare forward pass": float(ratio)}
        results.add("16 batches of 32 contexts, built-in model to layer 2", row)


def groups(setting: Setting, results: Results) -> None:
    """Runs trained side by side against one pass of the model and their bare steps (scripts/measure_groups)."""
    runs, d_sae, tokens, rounds = (2, 64, 4096, 1) if setting.small else (8, 512, 65_536, 3)
    command = [sys.executable, "-m", "scripts.measure_groups", "--parts", "--runs", str(runs), "--d-sae", str(d_sae)]
    command += ["--tokens", str(tokens), "--rounds", str(rounds)]
    out = subprocess.run(command, cwd=ROOT, env=setting.environment(), capture_output=True, text=True, check=True)
    ratios = re.findall(r", (CPU|clock): ([\d.]+) \(([\d.]+) to ([\d.]+)\)$", out.stdout, re.M)
    for way, median, least, most in ratios:
        row: dict[str, object] = {"by": way, "training of the group / (one pass + bare steps)": float(median)}
        row["range"] = f"{least} to {most}"
        results.add(f"{runs} runs, d_in 512, layer 5 of 6, d_sae {d_sae:,}, {tokens:,} tokens", row)


def sweep(setting: Setting, results: Results) -> None:
    """Whole commands: one run, and a sweep of four on the same activations, core evaluation included."""
    words = ["num_tokens=204800", "batch_size=2048", "penalty=none", "lr=1e-3", f"device={setting.device}"]
    with tempfile.TemporaryDirectory() as folder:
        outputs = f"outputs={folder}"
        commands = {
            "one run, evaluated as eval=core": ["launch.py", "seed=0", *words, outputs],
            "a sweep of four more": ["launch.py", "-m", "seed=1,2,3,4", *words, outputs],
            "evaluate the first, eval=quick": ["-m", "sae_sweeps", "evaluate", "RUN", "eval=quick"],
        }
        for label, command in commands.items():
            runs = [str(path.parent) for path in Path(folder).glob("runs/*/results.json")]
            command = [runs[0] if word == "RUN" else word for word in command]
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=setting.environment(), capture_output=True, check=True
            )
            row = {"command": label, "s": time.perf_counter() - start}
            results.add("100 steps of TopK on the built-in model, whole commands", row)


HYDRA = ("hydra", "omegaconf", "yaml")
RUN = (*HYDRA, "transformers", "tokenizers", "safetensors", "pandas", "rich", "tqdm")


@dataclass
class Part:
    where: str
    """Its function, as module:name."""
    limit: int
    """Seconds that it may take on a GPU; on a CPU more (`--patience`)."""
    needs: tuple[str, ...] = ()
    """Modules without which it is left out."""
    devices: tuple[str, ...] = ("cpu", "cuda")

    @property
    def function(self) -> Callable[[Setting, Results], None]:
        module, _, name = self.where.partition(":")
        return getattr(import_module(module), name)


PARTS = {
    "machine": Part("bench.machine:machine", 40),
    "check": Part("bench.check:check", 75),
    "syncs": Part("bench.syncs:syncs", 80, HYDRA, ("cuda",)),
    "step": Part("bench.parts:step", 110),
    "paths": Part("bench.paths:paths", 55, HYDRA),
    "penalty": Part("bench.parts:penalty", 55, HYDRA),
    "profile": Part("bench.profile:profile", 35, HYDRA),
    "demo": Part("bench.demo:demo", 60, RUN, ("cuda",)),
    "disk": Part("bench.disk:disk", 25, (*HYDRA, "safetensors")),
    "architectures": Part("bench.parts:architectures", 40, HYDRA),
    "harvest": Part("bench.parts:harvest", 60, (*RUN, "transformer_lens"), ("cpu",)),
    "groups": Part("bench.parts:groups", 120, RUN, ("cpu",)),
    "launcher": Part("bench.launcher:launcher", 60, RUN, ("cpu",)),
    "evaluation": Part("bench.evaluation:evaluation", 120, RUN, ("cpu",)),
    "sweep": Part("bench.parts:sweep", 60, RUN, ("cpu",)),
}
