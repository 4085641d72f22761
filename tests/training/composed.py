"""Runs composed from `conf/` as the command does, small, and batches with windows and roles to train them on."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.cli.compose import register
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.config.words import rewrite
from sae_sweeps.training.checkpoint import Write
from sae_sweeps.training.step import Training

D_IN, BATCH, STEPS = 16, 64, 30
SMALL = [
    "model=synthetic", f"model.d_in={D_IN}", "d_sae=64", f"batch_size={BATCH}", f"num_tokens={STEPS * BATCH}",
    "lr=3e-3", "train.sampling=contiguous_windows",
]  # fmt: skip


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml") if path.stem != "none")


def configured(*words: str) -> RunConfig:
    register()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return run_config(compose("config", overrides=rewrite([*SMALL, *words])))


def batch_at(step: int) -> Batch:
    """Sparse combinations of fixed directions, in windows of 32 tokens, half of them to be forgotten."""
    directions = torch.randn(24, D_IN, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1000 + step)
    active = torch.rand(BATCH, 24, generator=generator) < 0.15
    x = 3 * (active * torch.rand(BATCH, 24, generator=generator)) @ directions + 0.3
    number = torch.arange(BATCH, dtype=torch.int32)
    role = torch.where(number % 64 < 32, 1, 2).to(torch.int8)
    return Batch(x, number, number // 32, number % 32, role)


def save_checkpoint(training: Training, step: int, folder: Path) -> None:
    """Write the state before `step`. Raises Diverged if a step before was not finite."""
    training.nonfinite_guard.check(wait=True)
    Write(training, step, folder, beside=False).finish()
