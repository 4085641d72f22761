"""What a checkpoint costs a run in training, and what a batch costs that comes from disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from bench.contenders import as_batches, trainings
from bench.results import Results
from bench.setting import Setting
from bench.timing import synchronized


def disk(setting: Setting, results: Results) -> None:
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        checkpoint(setting, results, Path(folder))
        batch(setting, results, Path(folder))


def checkpoint(setting: Setting, results: Results, folder: Path) -> None:
    """How long a checkpoint keeps the step waiting, and how long until it can be resumed from."""
    from sae_sweeps.training.checkpoint import load_checkpoint, save_checkpoint

    shape = setting.shapes()[0]
    (training,), data = trainings(shape), as_batches(shape)
    for i in range(3):
        training.step(data[i], i)
    for number in range(2):
        start = synchronized(setting.device)
        save_checkpoint(training, 3, folder)
        held = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        results.add(f"Checkpoint of TopK, {shape}", {"": f"write {number + 1}", "s": held, "GB": size / 1e9})
    start = time.perf_counter()
    load_checkpoint(training, folder)
    results.add(f"Checkpoint of TopK, {shape}", {"": "read", "s": synchronized(setting.device) - start})


def batch(setting: Setting, results: Results, folder: Path) -> None:
    """A batch drawn from memory and from shards on disk, on the device."""
    from sae_sweeps.activations import store
    from sae_sweeps.activations.sampler import Sampler
    from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, SyntheticConfig

    shape = setting.shapes()[0]
    n_tokens = 20 * shape.batch
    shards = 3 if setting.small else 180
    store.SHARD_BYTES = n_tokens * shape.d_in * 2 // shards  # as many shards as 5 million tokens of Gemma have
    for mode in ("memory", "disk"):
        (opened,) = store.open_layers(
            SyntheticConfig(d_in=shape.d_in), [(LayerConfig(), {"bench": mode})], DataConfig(),
            ActivationsConfig(mode=mode, dtype="bfloat16"), n_tokens, folder, setting.device,
        )  # fmt: skip
        if isinstance(opened, Exception):
            raise opened
        sampler = Sampler(opened, shape.batch, device=setting.device)
        for pass_ in ("first", "second"):
            took, cpu = [], []
            for step in range(20):
                start, process = synchronized(setting.device), time.process_time()
                sampler.batch(step)
                took.append(synchronized(setting.device) - start)
                cpu.append(time.process_time() - process)
            row = {
                "from": mode, "pass": pass_, "ms": 1e3 * sorted(took)[10], "ms of processor": 1e3 * sorted(cpu)[10],
            }  # fmt: skip
            results.add(
                f"A batch of {shape.batch} x {shape.d_in} in bfloat16, of {n_tokens} tokens in {shards} shards", row
            )
    if setting.device != "cpu":
        torch.cuda.synchronize()
