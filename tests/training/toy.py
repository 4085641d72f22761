"""A penalty with a trained head and a moving average, and a run to train it in: what later penalties will need."""

import sys
from dataclasses import dataclass
from types import ModuleType

import torch
from omegaconf import OmegaConf
from torch import nn

from sae_sweeps.architectures.batch import Batch
from sae_sweeps.architectures.group_layer import GroupLayerConfig
from sae_sweeps.config.evaluations import EvalConfig
from sae_sweeps.config.paths import config_dir
from sae_sweeps.config.run import RunConfig
from sae_sweeps.config.schema import (
    ActivationsConfig,
    DataConfig,
    LayerConfig,
    LoggerConfig,
    SyntheticConfig,
    TrainConfig,
)
from sae_sweeps.penalties.base import Penalty, PenaltyConfig, PenaltyValue
from sae_sweeps.penalties.none import NoneConfig
from sae_sweeps.schedules import ConstantConfig, LinearLRConfig

NO_GROUPS = GroupLayerConfig(**OmegaConf.load(config_dir() / "group_layer" / "none.yaml"))


@dataclass
class ToyConfig(PenaltyConfig):
    weight: float = 0.1

    def peak_weight(self):
        return self.weight

    def sampling(self):
        return "contiguous_windows"


class Toy(Penalty):
    """A linear head predicts a moving average of the features' mean from noisy features; roles and text are at hand."""

    def __init__(self, cfg, d_in, d_sae, total_steps, generator):
        super().__init__(cfg, d_in, d_sae, total_steps, generator)
        self.head = nn.Parameter(torch.randn(d_sae, generator=generator) * 0.01)
        self.register_buffer("average", torch.zeros(d_sae))

    def observe(self, ctx):
        with torch.no_grad():
            self.average.lerp_(ctx.feature_acts.dense().mean(0), 0.1)

    def forward(self, ctx):
        f = ctx.feature_acts.dense()
        noise = torch.rand(f.shape, generator=ctx.generator())
        gap = (f * noise * self.head).mean(0) - self.average
        return PenaltyValue(gap.square().sum(), {"average": self.average.mean(), "tokens": len(ctx.batch.role)})


def register_toy():
    """Make `penalty=toy` a choice, as a file in sae_sweeps/penalties would."""
    module = ModuleType("sae_sweeps.penalties.toy")
    module.CONFIG, module.COMPONENT = ToyConfig, Toy
    sys.modules["sae_sweeps.penalties.toy"] = module


def run_config(architecture, penalty=None, schedule=None, group_layer=None, num_tokens=640, **train):
    return RunConfig(
        model=SyntheticConfig(d_in=16, n_features=32),
        layer=LayerConfig(index=0),
        data=DataConfig(),
        activations=ActivationsConfig(mode="memory", dtype="float32"),
        architecture=architecture,
        group_layer=group_layer or NO_GROUPS,
        penalty=penalty or NoneConfig("none"),
        schedule=schedule or ConstantConfig("constant"),
        lr_schedule=LinearLRConfig("linear", 1e-2, 0.1, 0.2, 0.0),
        train=TrainConfig(**{"dead_after_tokens": 64, "log_every": 5, "checkpoint_every": 4, **train}),
        eval=EvalConfig(name="none"),
        logger=LoggerConfig(),
        num_tokens=num_tokens,
        batch_size=32,
        seed=0,
        data_seed=0,
        outputs="outputs",
        device="cpu",
        title=None,
    )


def batch_at(step, size=32, d_in=16):
    """A batch that only the step decides: sparse combinations of fixed directions."""
    world = torch.Generator().manual_seed(1)
    directions = torch.randn(24, d_in, generator=world)
    generator = torch.Generator().manual_seed(1000 + step)
    active = torch.rand(size, 24, generator=generator) < 0.15
    x = (active * torch.rand(size, 24, generator=generator)) @ directions + 0.3
    numbers = torch.arange(size, dtype=torch.int32)
    return Batch(x, numbers, numbers // 8, numbers % 8, torch.zeros(size, dtype=torch.int8))
