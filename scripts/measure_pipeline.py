"""What the parts around a training step cost it on this machine.

    python -m scripts.measure_pipeline checkpoint [--d-in N --d-sae N --batch N --steps N --folder DIR]
    python -m scripts.measure_pipeline batch [--d-in N --batch N --steps N --shards N --folder DIR]

`batch`: shuffled batches from an artifact of many small shards in bfloat16, against a loop over the shards in Python.

`checkpoint`: steps with a checkpoint before each; how long the training is held (while buffers are copied and the write
is begun, and before the update, until the copy is complete), and how long the file takes beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sae_sweeps.activations import store as store_module
from sae_sweeps.activations.store import DiskStore
from sae_sweeps.architectures.batch import Batch
from sae_sweeps.cli.compose import compose_points
from sae_sweeps.config.run import run_config
from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, SyntheticConfig
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


def shard_by_shard(store: DiskStore, index_B: np.ndarray) -> Batch:
    """A batch as a loop over the shards picks it."""
    shard_B, index = index_B // store._per_shard, torch.from_numpy(index_B)
    out = Batch(*(t.new_empty((len(index), *t.shape[1:])) for t in store._shard(0).fields()))
    for number in np.unique(shard_B):
        here = torch.from_numpy(np.flatnonzero(shard_B == number))
        for whole, part in zip(out.fields(), store._shard(int(number)).fields(), strict=True):
            whole[here] = part[index[here] - int(number) * store._per_shard]
    return out


def measure_batch(words: argparse.Namespace) -> None:
    world = SyntheticConfig(d_in=words.d_in, n_features=64, n_correlated=0, n_hierarchical=0)
    settings = ActivationsConfig(mode="disk", dtype="bfloat16")
    store_module.SHARD_BYTES = 256 * words.d_in * 2
    n_tokens = 256 * words.shards
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=words.folder) as folder:
        (store,) = store_module.open_layers(
            world, [(LayerConfig(), {})], DataConfig(), settings, n_tokens, Path(folder), "cpu"
        )
        assert isinstance(store, DiskStore)
        ways = {"loop over shards": lambda index_B: shard_by_shard(store, index_B), "take": store.take}
        clocks = {"of the thread's processor time": time.thread_time, "wall-clock": time.perf_counter}
        times: dict[tuple[str, str], list[float]] = {(clock, way): [] for clock in clocks for way in ways}
        for _ in range(words.steps + 2):  # the first two read the shards and compile
            index_B = draw.integers(0, n_tokens, words.batch)
            batches = []
            for name, way in ways.items():
                began = {clock: now() for clock, now in clocks.items()}
                batches.append(way(index_B))
                for clock, now in clocks.items():
                    times[clock, name].append(1e3 * (now() - began[clock]))
            assert all(torch.equal(*pair) for pair in zip(*(batch.fields() for batch in batches), strict=True))
    print(f"{words.batch} tokens of {words.d_in} numbers from {words.shards} shards, ms: median, least, largest")
    for (clock, name), took in times.items():
        took = sorted(took[2:])
        print(f"  {name}, {clock}: {took[len(took) // 2]:.2f}  {took[0]:.2f}  {took[-1]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["checkpoint", "batch"])
    parser.add_argument("--d-in", type=int, default=2304)
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--shards", type=int, default=180)
    parser.add_argument("--folder", help="where the files are written; null: the system's temporary folder")
    words = parser.parse_args()
    (measure_checkpoint if words.part == "checkpoint" else measure_batch)(words)


if __name__ == "__main__":
    main()
