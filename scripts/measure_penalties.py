"""What each penalty adds to a training step, interleaved; read the ratios.

    python -m scripts.measure_penalties [--rounds N] [--warm-up N] [--output FILE] [--d-sae N --d-in N --k N --batch N]
    python -m scripts.measure_penalties --run [--k N]
    python -m scripts.measure_penalties --dense [--threshold T] --d-sae 16384 --d-in 2304 --k 320

Whole steps (forward, backward, gradient projection, clip, Adam, normalisation) of a TopK SAE, auxiliary loss off,
float32. The SAE has been trained for `--warm-up` steps on sparse sums of random directions that are used with
power-law frequency, as an SAE's features are on text; every case starts from it and sees the same batch. `wall` and
`processor` are medians over rounds of (step with the penalty) / (bare step of the same round), minus 1, of
wall-clock time and of processor time over all threads; other work on the machine disturbs the second less.

`--run` measures the progressive penalty at ten points spread evenly over a run, which its cost depends on: the mean is
what it adds to a whole run. `processor` alone, in one thread, the smallest of the rounds.

`--dense` measures the progressive penalty's sum alone, its memory, and its matrix products alone at the same shapes.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.run import run_config
from sae_sweeps.kernels import coactivation_cpu
from sae_sweeps.kernels.competing_pairs import Ranked, Rule
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.counting_sort import Array
from sae_sweeps.kernels.features import TopKFeatures
from sae_sweeps.kernels.selection import PLAIN, Selection
from sae_sweeps.storage.files import write_text
from sae_sweeps.training.step import Training

STEPS = 1000
ORTHO = ("penalty=ortho", "base_threshold=0.1")
REFERENCE = "train.kernels=reference"
CASES: dict[str, tuple[tuple[str, ...], float]] = {
    "none": (("penalty=none",), 0.5),
    "ortho, p = 0": (ORTHO, 0.0),
    "ortho, p = 0.5": (ORTHO, 0.5),
    "ortho, p = 0.99": (ORTHO, 0.99),
    "none, plain torch": (("penalty=none", REFERENCE), 0.5),
    "ortho, p = 0, plain torch": ((*ORTHO, REFERENCE), 0.0),
    "strict_ortho": (("penalty=strict_ortho",), 0.5),
    "adaptive_sharing": (("penalty=adaptive_sharing",), 0.5),
    "selective_ortho": (("penalty=selective_ortho",), 0.5),
    "ortsae": (("penalty=ortsae",), 0.5),
    "decorrelation": (("penalty=decorrelation",), 0.5),
    "decorrelation, plain torch": (("penalty=decorrelation", "train.kernels=reference"), 0.5),
    "decorrelation at weight 0 (two_phase, p = 0)": (("penalty=decorrelation", "schedule=two_phase"), 0.0),
    "contrastive": (("penalty=contrastive",), 0.5),
    "none, with groups": (("penalty=none", "group_layer=groups"), 0.5),
    "bottleneck, with groups": (("penalty=bottleneck",), 0.5),
}
"""Name -> words of the command, progress p of the step."""


def power_law(n: int) -> Tensor:
    """Frequency of each of n features, proportional to rank^-0.7."""
    rate = torch.arange(1, n + 1).pow(-0.7)
    return rate / rate.sum()


def batch_of(words: argparse.Namespace, directions: Tensor, generator: torch.Generator) -> Batch:
    chosen = torch.multinomial(power_law(len(directions)), words.batch * words.k, True, generator=generator)
    weights = 0.5 + torch.rand(words.batch, words.k, generator=generator)
    x = torch.nn.functional.embedding_bag(
        chosen.view(words.batch, words.k), directions, per_sample_weights=weights, mode="sum"
    )
    number = torch.arange(words.batch, dtype=torch.int32)
    return Batch(x, number, number // 2, number % 2, torch.zeros(words.batch, dtype=torch.int8))


def training_of(words: argparse.Namespace, overrides: tuple[str, ...], selection: Selection | None = None) -> Training:
    """selection: how features are found; None: it is chosen by a measurement."""
    sizes = [f"model.d_in={words.d_in}", f"d_sae={words.d_sae}", f"k={words.k}", f"batch_size={words.batch}"]
    fixed = ["model=synthetic", "architecture.aux_weight=0", f"num_tokens={STEPS * words.batch}", "device=cpu"]
    (point,) = compose_points([*fixed, *sizes, *overrides])
    return Training(run_config(point.cfg), 1.0, torch.zeros(words.d_in), torch.device("cpu"), selection)


def learnt_case(words: argparse.Namespace) -> tuple[Training, dict[str, Tensor], Batch]:
    """A bare training after `--warm-up` steps, a copy of its SAE's state, and a batch."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2 * words.d_sae, words.d_in, generator=generator), dim=1)
    bare = training_of(words, CASES["none"][0])
    for step in range(words.warm_up):
        bare.step(batch_of(words, directions, generator), STEPS // 2 + step % (STEPS // 2))
    learnt = {name: tensor.clone() for name, tensor in bare.sae.state_dict().items()}
    return bare, learnt, batch_of(words, directions, generator)


def measure_run(words: argparse.Namespace) -> str:
    """What the progressive penalty adds at ten points of a run, with the default base_threshold and a lower one."""
    torch.set_num_threads(1)
    bare, learnt, batch = learnt_case(words)
    points = [(number + 0.5) / 10 for number in range(10)]
    selection = bare.sae.selection
    progressive = {
        base: training_of(words, ("penalty=ortho", f"base_threshold={base}"), selection) for base in (0.3, 0.1)
    }
    steps = {selection.way: bare, "plain": training_of(words, CASES["none"][0], PLAIN)}
    cases: list[tuple[object, Training, float]] = [(name, training, 0.5) for name, training in steps.items()]
    cases += [(base, training, p) for base, training in progressive.items() for p in points]
    least: dict[tuple[object, float], float] = {}
    for number in range(words.rounds + 1):
        for name, training, p in cases:
            training.sae.load_state_dict(learnt)
            begun = time.process_time()
            training.step(batch, round(p * STEPS))
            if number:  # the first round compiles and fills the caches
                least[name, p] = min(least.get((name, p), math.inf), time.process_time() - begun)
    step, plain = least[selection.way, 0.5], least["plain", 0.5]
    names = [f"p = {p:g}" for p in points] + ["mean", "mean, of the plain step"]
    lines = ["| base_threshold | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for base in progressive:
        adds = [least[base, p] - step for p in points]
        shares = [add / step for add in adds] + [statistics.mean(adds) / each for each in (step, plain)]
        lines.append(f"| {base} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    head = f"bare step {1e3 * step:.0f} ms with train.selection={selection.way}, {1e3 * plain:.0f} ms with plain"
    return f"{head}\n\n" + "\n".join(lines)


def measure_steps(words: argparse.Namespace) -> str:
    bare, learnt, batch = learnt_case(words)
    trainings = {
        name: training_of(words, overrides, PLAIN if REFERENCE in overrides else bare.sae.selection)
        for name, (overrides, _) in CASES.items()
    }
    clocks: tuple[Callable[[], float], ...] = (time.perf_counter, time.process_time)
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in CASES}
    pairs: dict[str, float] = {}
    for number in range(words.rounds + 1):
        for name, training in trainings.items():
            training.sae.load_state_dict(learnt)
            step = round(CASES[name][1] * STEPS)
            begun = [clock() for clock in clocks]
            report = training.step(batch, step, logged=number == 0)
            took = tuple(clock() - start for clock, start in zip(clocks, begun, strict=True))
            if number == 0:  # compiles and fills the caches
                pairs[name] = report.numbers.get("penalty/competing_pairs", 0)
            else:
                times[name].append(took)
    lines = ["| case | step, ms | adds, wall | adds, processor | competing pairs |", "|---|---|---|---|---|"]
    for name, took_ in times.items():
        ms = 1e3 * statistics.median(wall for wall, _ in took_)
        beside = "none" + name.partition(", with groups")[1] + name.partition(", plain torch")[1]
        adds = [
            statistics.median(mine[c] / bare_[c] for mine, bare_ in zip(took_, times[beside], strict=True)) - 1
            for c in range(len(clocks))
        ]
        shown = f"{pairs[name]:,.0f}" if pairs[name] else ""
        lines.append(f"| {name} | {ms:.0f} | {adds[0]:.0%} | {adds[1]:.0%} | {shown} |")
    return "\n".join(lines)


def memory_peak() -> float:
    """Highest resident memory of this process since the last `forget_peak`, in GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure_dense(words: argparse.Namespace) -> str:
    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(words.d_sae, words.d_in, generator=generator), dim=1)
    rate = power_law(words.d_sae)
    indices = torch.cat([
        torch.multinomial(rate.expand(128, -1), words.k, generator=generator) for _ in range(words.batch // 128)
    ])  # fmt: skip
    f = TopKFeatures(torch.ones(indices.shape), indices, words.d_sae)
    competition = Competition("jaccard", "linear", words.threshold, 0.1)
    small = TopKFeatures(torch.ones(2, 2), torch.tensor([[0, 1], [1, 2]]), 3)
    for share in (0, 1):  # compiles both ways
        coactivation_cpu.DENSE_SHARE, kept = share, coactivation_cpu.DENSE_SHARE
        coactivation_cpu.by_features(W[:3], small, 2, competition)
        coactivation_cpu.DENSE_SHARE = kept
    shapes: list[tuple[int, int]] = []
    extra = 0.0
    sums = torch.zeros_like(W)
    weigh = coactivation_cpu._weigh

    def noted(S: Array, r: Ranked, rule: Rule, rows: Array, begin: int, value: Array) -> None:
        shapes.append(S.shape)
        weigh(S, r, rule, rows, begin, value)

    coactivation_cpu._weigh = noted
    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    for _ in range(words.rounds):
        shapes.clear()
        forget_peak()
        before = memory_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        _, pairs, gradient = coactivation_cpu.by_features(W, f, len(indices), competition)
        took = time.perf_counter() - wall, time.process_time() - cpu
        extra = max(extra, memory_peak() - before)  # later rounds reuse what the first one freed
        n_pairs = sum(rows * columns for rows, columns in shapes)
        wall, cpu = time.perf_counter(), time.process_time()
        for rows, columns in shapes:
            S = W[:rows] @ W[:columns].T
            sums[:rows] += S @ W[:columns]
            sums[:columns].addmm_(S.T, W[:rows])
        products = time.perf_counter() - wall, time.process_time() - cpu
        for found, mine, theirs in zip(ratios.values(), took, products, strict=True):
            found.append(mine / theirs)
    flops = 6 * n_pairs * words.d_in
    gradient_gb = sum(part.numel() for _, part in gradient.parts) * 4 / 2**30
    return (
        f"{pairs:,} competing pairs; tiles of {n_pairs:,} pairs; {took[0]:.1f} s; "
        f"{statistics.median(ratios['wall']):.2f} (processor time {statistics.median(ratios['processor']):.2f}) times "
        f"its matrix products of {flops / 1e12:.2f} Tflop ({flops / products[0] / 1e9:.0f} Gflop/s); "
        f"memory above its inputs {extra:.2f} GB, of which the gradient {gradient_gb:.2f} GB"
    )


def write_block(file: Path, name: str, text: str) -> None:
    """Put the text between `<!-- name -->` and `<!-- end of name -->` of a file that has both."""
    head, mark, rest = file.read_text().partition(f"<!-- {name} -->\n")
    _, end, tail = rest.partition(f"<!-- end of {name} -->")
    if not mark or not end:
        raise SystemExit(f"{file} has no block named {name}")
    write_text(file, f"{head}{mark}{text}\n{end}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"d-in": 512, "d-sae": 8192, "k": 32, "batch": 2048, "rounds": 9, "warm-up": 60}
    for key, default in sizes.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--threshold", type=float, default=0.001)
    parser.add_argument("--output", type=Path)
    words = parser.parse_args()
    if words.run:
        name, found = f"run, k {words.k}", measure_run(words)
    else:
        name, found = ("dense", measure_dense(words)) if words.dense else ("steps", measure_steps(words))
    shape = f"batch {words.batch}, d_in {words.d_in}, d_sae {words.d_sae}, k {words.k}"
    n_threads = torch.get_num_threads()
    head = f"{shape}; {n_threads} thread{'s' * (n_threads > 1)}, {platform.machine()}, torch {torch.__version__}"
    print(f"{head}\n\n{found}")
    if words.output:
        write_block(words.output, name, f"{head}\n\n{found}")


if __name__ == "__main__":
    main()
