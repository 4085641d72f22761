"""Seconds and peak memory of the commands that read many runs, each in a process of its own.

    python -m scripts.measure_tables [--runs N] [--rows N] [--rounds N] [--keep FOLDER]

The runs are synthetic: configs as `launch.py` composes them (four penalties, learning rates, seeds), every metric that
a full evaluation records, a metrics.jsonl of `--rows` lines (41 is the default budget's). Processor seconds vary
least with the load of the machine; the fastest of the rounds is shown, beside `import pandas`, which every table needs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

COMMANDS: dict[str, list[str]] = {
    "--help": ["--help"],
    "table": ["table", "{outputs}"],
    "table, a filter, sorted": ["table", "{outputs}", "--where", "lr <= 1e-3 and penalty = ortho", "--sort", "-fvu"],
    "table, seeds folded": ["table", "{outputs}", "--fold", "seed"],
    "table, csv": ["table", "{outputs}", "--format", "csv"],
    "table, html": ["table", "{outputs}", "--format", "html"],
    "report": ["report", "{outputs}", "-o", "{outputs}/report.html"],
}
"""The commands that are measured: arguments of `python -m analysis`."""

STUDIED = ("penalty=none", "penalty=ortho", "penalty=decorrelation", "penalty=contrastive")
SEEDS = 5
METRICS = (
    "final_loss recon_loss sparsity_loss penalty_loss penalty_weight dead_features kl_div_score kl_div_with_ablation "
    "kl_div_with_sae ce_loss_score ce_loss_with_ablation ce_loss_with_sae ce_loss_without_sae "
    "total_tokens_eval_reconstruction total_tokens_eval_sparsity_variance l2_norm_in l2_norm_out l2_ratio l1 mse "
    "cossim mse_per_token explained_variance_legacy relative_reconstruction_bias explained_variance fvu frac_alive "
    "explained_variance_correct freq_over_1_percent normalized_freq_over_1_percent freq_over_10_percent "
    "normalized_freq_over_10_percent average_max_encoder_cosine_sim average_max_decoder_cosine_sim "
    "nearest_neighbour_cosine nearest_neighbour_cosine_median mean_abs_cosine mean_absorption_score "
    "mean_num_split_features mean_full_absorption_score llm_test_accuracy sae_test_accuracy unlearning_score"
).split()
SERIES = {
    "llm_top_{}_test_accuracy": (1, 2, 5),
    "sae_top_{}_test_accuracy": (1, 2, 5),
    "tpp_threshold_{}_total_metric": (2, 5, 10, 20, 50, 100, 500),
    "tpp_threshold_{}_intended_diff_only": (2, 5, 10, 20, 50, 100, 500),
    "tpp_threshold_{}_unintended_diff_only": (2, 5, 10, 20, 50, 100, 500),
    "scr_dir1_threshold_{}": (2, 5, 10, 20, 50, 100, 500),
    "scr_metric_threshold_{}": (2, 5, 10, 20, 50, 100, 500),
    "scr_dir2_threshold_{}": (2, 5, 10, 20, 50, 100, 500),
}
TERMS = (
    "loss recon_loss aux_loss aux_weight sparsity_loss penalty_loss penalty_weight fvu dead_features lr k "
    "grad_norm/recon grad_norm/penalty grad_norm/recon_enc grad_norm/penalty_enc grad_norm/total penalty/overlap"
).split()


def configs(count: int) -> Iterator[dict[str, Any]]:
    """The studied penalties x as many learning rates as needed x seeds."""
    from sae_sweeps.cli.compose import compose_points
    from sae_sweeps.sweeps.plan import make_plan

    bases = [make_plan(compose_points([word])).runs[0].run.to_dict() for word in STUDIED]
    for number in range(count):
        base = bases[number // SEEDS % len(bases)]
        rate = 1e-4 * (1 + number // (SEEDS * len(bases)))
        yield base | {"seed": number % SEEDS, "lr_schedule": base["lr_schedule"] | {"lr": rate}}


def make_runs(outputs: Path, count: int, rows: int) -> None:
    """Write run folders as completed runs leave them, without weights and checkpoints."""
    from sae_sweeps.schedules import LR_SCHEDULES

    draw = random.Random(0).random
    names = METRICS + [name.format(k) for name, ks in SERIES.items() for k in ks]
    for number, config in enumerate(configs(count)):
        folder = outputs / "runs" / f"{number:012x}"
        folder.mkdir(parents=True)
        metrics = {name: draw() for name in names} | {"l0": 32.0, "tokens": 409600, "steps": 400}
        provenance = {"git_commit": "0" * 12, "device": "cpu", "wall_time_s": 30 * draw(), "tokens_per_s": 9000}
        results = {"run_id": folder.name, "title": f"run {number}", "config": config, "metrics": metrics}
        write(folder / "results.json", results | {"provenance": provenance, "warnings": []})
        status = {"state": "completed", "step": 400, "total_steps": 400, "host": "here", "pid": 1, "error": None}
        write(folder / "status.json", status)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        rate = LR_SCHEDULES[config["lr_schedule"]["name"]](**config["lr_schedule"])
        with open(folder / "metrics.jsonl", "w") as file:
            for row in range(rows):
                held_out = {"held_out_fvu": 1 / (1 + row) + 0.01 * draw()} if row % 5 == 0 or row == rows - 1 else {}
                values = {"step": 10 * row, "tokens": 10240 * (row + 1)} | {term: draw() for term in TERMS}
                values |= {"k": 32, "lr": rate.value(10 * row, 400), "l0": 32.0}
                file.write(json.dumps(values | {"tokens_per_s": 9000} | held_out, separators=(",", ":")) + "\n")


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2))


def measure(module: list[str]) -> tuple[float, float, float, int]:
    """Processor seconds (user and system), wall-clock seconds, peak MB and bytes printed by one process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([sys.executable, *module], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(module)} ended with status {child.returncode}")
        size = out.seek(0, os.SEEK_END)
    return usage.ru_utime + usage.ru_stime, time.perf_counter() - started, usage.ru_maxrss / 1024, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=41, help="lines of each run's metrics.jsonl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave the runs; taken up when it exists")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make the runs there and measure nothing")
    args = parser.parse_args()
    if args.make:
        make_runs(args.make, args.runs, args.rows)
        return
    with tempfile.TemporaryDirectory() as scratch:
        outputs = args.keep or Path(scratch) / "outputs"
        if not outputs.exists():  # in a process of its own: a child's peak begins with its parent's
            sizes = ["--runs", str(args.runs), "--rows", str(args.rows)]
            subprocess.run([sys.executable, "-m", "scripts.measure_tables", "--make", str(outputs), *sizes], check=True)
        bytes_read = sum(file.stat().st_size for file in outputs.rglob("*") if file.is_file())
        print(f"{len(list((outputs / 'runs').iterdir()))} runs, {bytes_read / 2**20:.0f} MB of files")
        print(f"{'command':<28}{'processor s':>12}{'clock s':>9}{'peak MB':>9}{'written KB':>12}")
        words = {"(import pandas)": ["-c", "import pandas"]}
        words |= {name: ["-m", "analysis", *command] for name, command in COMMANDS.items()}
        for name, command in words.items():
            filled = [word.format(outputs=outputs) for word in command]
            cpu, clock, memory, size = min(measure(filled) for _ in range(args.rounds))
            print(f"{name:<28}{cpu:>12.2f}{clock:>9.2f}{memory:>9.0f}{size / 1024:>12.0f}")


if __name__ == "__main__":
    main()
