"""Every architecture trains with every penalty, and every option of every penalty at least once."""

import torch
from hydra import compose, initialize_config_dir

from sae_sweeps.activations.batch import Batch
from sae_sweeps.command import CONF, register, rewrite
from sae_sweeps.config.run import RunConfig, run_config
from sae_sweeps.training.context import squared_error
from sae_sweeps.training.step import Training

D_IN, BATCH, STEPS = 16, 64, 30
SMALL = [
    "model=synthetic", f"model.d_in={D_IN}", "d_sae=64", f"batch_size={BATCH}", f"num_tokens={STEPS * BATCH}",
    "lr=3e-3", "train.sampling=contiguous_windows",
]  # fmt: skip


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "none")


def configured(*words: str) -> RunConfig:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
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


def train(*words: str) -> tuple[float, float, dict[str, float]]:
    """Reconstruction loss of one batch before and after 30 steps on others, and the last step's numbers."""
    run = configured(*words)
    training = Training(run, 1.0, torch.zeros(D_IN), torch.device("cpu"))
    fixed = batch_at(999)

    def loss() -> float:
        with torch.no_grad():
            z = training.sae.pre_activations(fixed.x)
            return float(squared_error(fixed.x - training.sae.decode(training.sae.activate(z, 0))))

    before = loss()
    for step in range(STEPS):
        report = training.step(batch_at(step), step, logged=True, monitored=step % 10 == 0)
        assert all(torch.tensor(value).isfinite() for value in report.numbers.values()), report.numbers
    assert all(parameter.isfinite().all() for _, parameter in training.named_parameters())
    return before, loss(), report.numbers
