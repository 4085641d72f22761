"""What every contender trains on. Imports torch alone: peers run in an environment of their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Shape:
    batch: int = 2048
    d_in: int = 512
    d_sae: int = 8192
    k: int = 32
    device: str = "cpu"
    bfloat16: bool = False

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.d_in} -> {self.d_sae}, k {self.k}{', bfloat16' if self.bfloat16 else ''}"


def batches(shape: Shape, n: int = 4) -> list[Tensor]:
    """Sparse combinations of random unit directions and a little noise, [batch, d_in] each."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(8 * shape.d_in, shape.d_in, generator=generator), dim=1)
    out = []
    for _ in range(n):
        index = torch.randint(0, len(directions), (shape.batch, 24), generator=generator)
        weight = torch.rand(shape.batch, 24, generator=generator) + 0.5
        x = F.embedding_bag(index, directions, per_sample_weights=weight, mode="sum")
        out.append((x + 0.05 * torch.randn(shape.batch, shape.d_in, generator=generator)).to(shape.device))
    return out
