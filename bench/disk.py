"""What a checkpoint costs a run in training, and what a batch costs that comes from disk."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from bench.contenders import as_batches, trainings
from bench.results import Results
from bench.setting import Setting
from bench.timing import synchronized


def disk(setting: Setting, results: Results) -> None:
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        checkpoint(setting, results, Path(folder))
        batch(setting, results, Path(folder))


def checkpoint(setting: Setting, results: Results, folder: Path) -> None:
    """How long a checkpoint holds the training, which goes on beside it, and how long until it is on the disk."""
    from sae_sweeps.training.checkpoint import FILE, Writer, load_checkpoint

    shape, device = setting.shapes()[0], setting.device
    (training,), data, writer = trainings(shape), as_batches(shape), Writer()
    for i in range(3):
        training.step(data[i], i)
    title, steps = f"Checkpoint of TopK, {shape}", 1 if setting.small else 10
    for number in range(3):  # the first one makes the memory of the copy
        start, waited = synchronized(device), 0.0
        write = writer.start(training, 3, folder, beside=True)
        begun = time.perf_counter() - start

        def before_update(write: Any = write) -> None:
            nonlocal waited
            began = time.perf_counter()
            write.wait_for_copy()
            waited += time.perf_counter() - began

        training.before_update = before_update
        for i in range(steps):
            training.step(data[i % len(data)], i)
        stepped = synchronized(device) - start
        write.finish()
        written = time.perf_counter() - start
        alone = synchronized(device)
        for i in range(steps):
            training.step(data[i % len(data)], i)
        alone = synchronized(device) - alone
        row: dict[str, object] = {"": f"write {number + 1}"}
        row |= {"ms to begin": 1e3 * begun, "ms before an update": 1e3 * waited}
        row |= {f"ms added to {steps} steps": 1e3 * (stepped - alone), "s until on the disk": written}
        results.add(title, row | {"GB": (folder / FILE).stat().st_size / 1e9})
    start = time.perf_counter()
    load_checkpoint(training, folder)
    results.add(f"{title}, read", {"s": synchronized(device) - start})


def batch(setting: Setting, results: Results, folder: Path) -> None:
    """A batch drawn from shards on disk and from memory, on the device."""
    from sae_sweeps.activations import store
    from sae_sweeps.activations.sampler import Sampler
    from sae_sweeps.config.schema import ActivationsConfig, DataConfig, LayerConfig, SyntheticConfig

    shape = setting.shapes()[0]
    n_tokens = 20 * shape.batch
    shards = 3 if setting.small else 180
    store.SHARD_BYTES = n_tokens * shape.d_in * 2 // shards  # as many shards as 5 million tokens of Gemma have
    for mode in ("disk", "memory"):  # the second reads what the first harvested
        (opened,) = store.open_layers(
            SyntheticConfig(d_in=shape.d_in), [(LayerConfig(), {"bench": shape.d_in})], DataConfig(),
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
