"""What the parts around a training step cost it on this machine.

    python -m scripts.measure_pipeline checkpoint [--d-in N --d-sae N --batch N --steps N --folder DIR]

`checkpoint`: steps with a checkpoint before each; how long the training is held (while buffers are copied and the write
is begun, and before the update, until the copy is complete), and how long the file takes beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.run import run_config
from sae_sweeps.training.checkpoint import FILE, Writer
from sae_sweeps.training.step import Training


def training_of(d_in: int, d_sae: int, batch: int) -> Training:
    words = [
        "model=synthetic", f"model.d_in={d_in}", f"d_sae={d_sae}", f"batch_size={batch}", f"num_tokens={1000 * batch}",
        "k=40", "architecture.aux_weight=0",
    ]  # fmt: skip
    (point,) = compose_points(words)
    return Training(run_config(point.cfg), 1.0, torch.zeros(d_in), torch.device("cpu"))


def measure_checkpoint(words: argparse.Namespace) -> None:
    training = training_of(words.d_in, words.d_sae, words.batch)
    number = torch.arange(words.batch, dtype=torch.int32)
    batch = Batch(
        torch.randn(words.batch, words.d_in), number, number, number, torch.zeros(words.batch, dtype=torch.int8)
    )
    writer, held = Writer(), 0.0
    with tempfile.TemporaryDirectory(dir=words.folder) as folder:
        for step in range(words.steps):
            began = time.perf_counter()
            write = writer.start(training, step, Path(folder), beside=True)
            start = time.perf_counter() - began
            waited = [0.0]

            def before_update(write=write, waited=waited) -> None:
                began = time.perf_counter()
                write.wait_for_copy()
                waited[0] = time.perf_counter() - began

            training.before_update = before_update
            stepped = time.perf_counter()
            training.step(batch, step)
            stepped = time.perf_counter() - stepped
            write.finish()
            whole = time.perf_counter() - began
            held = 1e3 * (start + waited[0])
            size = (Path(folder) / FILE).stat().st_size / 1e9
            print(
                f"step {step}: {size:.2f} GB, held {held:.1f} ms ({1e3 * start:.1f} to begin, {1e3 * waited[0]:.1f} "
                f"before the update) of a step of {stepped:.2f} s; on the disk after {whole:.2f} s"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["checkpoint"])
    parser.add_argument("--d-in", type=int, default=2304)
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--folder", help="where the files are written; null: the system's temporary folder")
    measure_checkpoint(parser.parse_args())


if __name__ == "__main__":
    main()
