"""The parts of the bench. Each measures and gives the lines of its table."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.check import compared
from bench.data import Shape
from bench.machine import Machine
from bench.report import table
from bench.rounds import ROOT, Contender, Measured, interleaved

Lines = list[str]


@dataclass
class Setting:
    device: str
    rounds: int
    threads: int
    machine: Machine
    small: bool = False
    """A shape at which everything takes no time, to try the bench itself."""

    def shape(self, k: int = 32) -> Shape:
        if self.small:
            return Shape(batch=128, d_in=32, d_sae=512, k=k // 4, device=self.device)
        return replace(STUDIES, k=k) if self.device == "cuda" else Shape(k=k)


STUDIES = Shape(batch=2048, d_in=2304, d_sae=16384, k=40, device="cuda", bfloat16=True)
"""The studies' shape, on a GPU."""

PENALTIES = {
    "ortho, p = 0": {"words": "penalty=ortho lambda2_max=0.1 base_threshold=0.1"},
    "ortho, p = 0.5": {"words": "penalty=ortho lambda2_max=0.1 base_threshold=0.1", "first_step": 0.5},
    "ortho, p = 0.99": {"words": "penalty=ortho lambda2_max=0.1 base_threshold=0.1", "first_step": 0.99},
    "strict_ortho": {"words": "penalty=strict_ortho lambda2_max=0.1"},
    "decorrelation": {"words": "penalty=decorrelation lambda2_max=0.1", "first_step": 0.99},
    "ortsae": {"words": "penalty=ortsae"},
    "adaptive_sharing": {"words": "penalty=adaptive_sharing", "first_step": 0.5},
}
"""Steps with a penalty, each against the step without; `first_step` is where in the run they are taken."""

ARCHITECTURES = {
    "topk": "architecture=topk k=32 architecture.aux_weight=0",
    "topk with its auxiliary loss": "architecture=topk k=32",
    "batch_topk": "architecture=batch_topk k=32 architecture.aux_weight=0",
    "matryoshka": "architecture=matryoshka k=32 architecture.aux_weight=0",
    "standard": "architecture=standard l1_penalty=1 architecture.l1_warmup=1",
    "gated": "architecture=gated l1_penalty=1 architecture.l1_warmup=1",
    "jumprelu": "architecture=jumprelu target_l0=32",
}
"""Words of each architecture; the L1 is so large that features are as sparse as after a warm-up."""


def check(setting: Setting) -> Lines:
    """Each kernel beside its reference at the shapes that are measured."""
    return [line for shape in _shapes(setting) for line in ["", *compared(shape)]]


def _shapes(setting: Setting) -> list[Shape]:
    return [setting.shape(k) for k in ((40, 320) if setting.device == "cuda" else (32, 128))]


def step(setting: Setting) -> Lines:
    """Whole TopK training steps beside the peers'."""
    out: Lines = []
    for shape in _shapes(setting):
        out += ["", f"TopK, {shape}:", "", *_steps(setting, shape)]
    return out


def _steps(setting: Setting, shape: Shape) -> Lines:
    contenders = [
        Contender("encoder product alone, as torch runs it", "encoder_product", shape),
        Contender("**ours**", "ours", shape),
        Contender("ours, `train.kernels=reference`", "ours", shape, {"words": "train.kernels=reference"}),
        Contender("ours, `train.selection=bfloat16`", "ours", shape, {"words": "train.selection=bfloat16"}),
        Contender("sparsify", "sparsify", shape),
        Contender("SAELens", "sae_lens", shape),
        Contender("dictionary_learning", "dictionary_learning", shape),
        Contender("plain PyTorch, fused Adam", "plain", shape),
        Contender("the same through torch.compile", "plain", shape, {"compile": True}),
    ]
    found = interleaved(contenders, setting.rounds, 20 if setting.device == "cuda" else 1, setting.threads)
    return _table(found, "**ours**", setting, shape)


def _table(found: dict[str, Measured], ours: str, setting: Setting, shape: Shape) -> Lines:
    flop = 2 * shape.batch * shape.d_in * shape.d_sae  # of the encoder, the one dense product
    rows = []
    for label, measured in found.items():
        rate = flop / measured.median / 1e9
        rows.append(
            [
                label,
                f"{1e3 * measured.median:.1f}",
                f"{shape.batch / measured.median:,.0f}",
                f"{measured.times(found[ours]):.2f}",
                f"{rate / setting.machine.gflops:.0%}",
                f"{measured.peak_gb:.2f}",
            ]
        )
    head = ("", "ms per step", "tokens/s", "time against ours", "encoder's share of the matrix rate", "peak GB")
    return table(head, rows)


def penalty(setting: Setting) -> Lines:
    """What each penalty adds to the step without it; five steps a turn, as a run's weights stay in the cache."""
    shape = setting.shape()
    contenders = [Contender("without", "ours", shape)]
    contenders += [Contender(label, "ours", shape, settings) for label, settings in PENALTIES.items()]
    found = interleaved(contenders, setting.rounds, 5, setting.threads)
    without = found["without"]
    rows = [
        [label, f"{1e3 * m.median:.1f}", f"{m.times(without) - 1:+.0%}", f"{m.peak_gb - without.peak_gb:+.2f}"]
        for label, m in found.items()
    ]
    return ["", f"TopK, {shape}:", "", *table(("penalty", "ms per step", "added", "GB added"), rows)]


def architectures(setting: Setting) -> Lines:
    """Each architecture by the fast kernels and by the plain formulas."""
    shape = setting.shape()
    contenders = []
    for label, words in ARCHITECTURES.items():
        contenders.append(Contender(label, "ours", shape, {"words": words}))
        contenders.append(Contender(f"{label} plain", "ours", shape, {"words": f"{words} train.kernels=reference"}))
    rows = []
    for one, other in zip(contenders[::2], contenders[1::2], strict=True):
        found = interleaved([one, other], max(3, setting.rounds // 2), 1, setting.threads, warm=6)
        fast, plain = found[one.label], found[other.label]
        gain = f"{plain.times(fast):.2f}"
        rows.append([one.label, f"{1e3 * fast.median:.1f}", f"{1e3 * plain.median:.1f}", gain, f"{fast.peak_gb:.2f}"])
    head = ("architecture", "ms per step", "plain formulas, ms", "times as fast", "peak GB")
    return ["", f"{shape}:", "", *table(head, rows)]


def profile(setting: Setting) -> Lines:
    """Where a step's time goes."""
    from bench.profile import phases

    shape = setting.shape()
    rows = [[name, f"{1e3 * seconds:.1f}", f"{share:.0%}"] for name, seconds, share in phases(shape, setting.threads)]
    return ["", f"A step of TopK, {shape}, in one process by itself:", "", *table(("phase", "ms", "share"), rows)]


def harvest(setting: Setting) -> Lines:
    """The harvest against the bare forward pass, by scripts/measure_harvest.py."""
    command = [sys.executable, "-m", "scripts.measure_harvest", "sae_sweeps/builtin/model", "--layer", "2"]
    command += ["--rounds", str(setting.rounds)]
    out = subprocess.run(command, cwd=ROOT, env=_environment(setting), capture_output=True, text=True, check=True)
    rows = [list(found) for found in re.findall(r"^(\w+) +([\d.]+) ms +([\d.]+) x bare", out.stdout, re.M)]
    head = ("16 batches of 32 contexts, built-in model to layer 2", "ms", "against the bare forward pass")
    return ["", *table(head, rows)]


def sweep(setting: Setting) -> Lines:
    """Whole commands: one run, and a sweep of four on the same activations, core evaluation included."""
    words = ["num_tokens=204800", "batch_size=2048", "penalty=none", "lr=1e-3"]
    rows = []
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
                [sys.executable, *command], cwd=ROOT, env=_environment(setting), capture_output=True, check=True
            )
            rows.append([label, f"{time.perf_counter() - start:.1f}"])
    return ["", *table(("100 steps of TopK on the built-in model, whole commands", "s"), rows)]


def _environment(setting: Setting) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(setting.threads), "PYTHONPATH": str(ROOT)}


PARTS: dict[str, Callable[[Setting], Lines]] = {
    "check": check, "step": step, "architectures": architectures, "penalty": penalty, "profile": profile,
    "harvest": harvest, "sweep": sweep,
}  # fmt: skip
ON_GPU = ("check", "step", "architectures", "penalty", "profile")
