"""Each fast kernel beside its plain reference at a given shape, on the device itself."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.data import Shape
from bench.report import table
from sae_sweeps.kernels import sparse_reference as plain
from sae_sweeps.kernels.choose import choose
from sae_sweeps.kernels.pairs import Pairs, per_token

TOLERANCE = 1e-4
"""Largest difference, relative to the largest value; references are computed in float64."""


def compared(shape: Shape) -> list[str]:
    """A table of how far each kernel is from its reference. Raises AssertionError where it is too far."""
    device = torch.device(shape.device)
    kernels = choose("auto", device)
    assert kernels is not None
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    z, W, g = normal(shape.batch, shape.d_sae), normal(shape.d_sae, shape.d_in), normal(shape.batch, shape.d_in)
    values, indices = kernels.largest(z, shape.k)
    pairs = per_token(indices, shape.d_sae, kernels)
    by_plain = Pairs(pairs.start, pairs.feature, shape.d_sae, plain)
    flat = values.reshape(-1)
    grad, unit = W.clone(), torch.nn.functional.normalize(normal(shape.d_sae, shape.d_in), dim=1)
    expected_grad = grad.double()
    kernels.remove_parallel(grad, unit)
    plain.remove_parallel(expected_grad, unit.double())
    found = {
        "largest": (values.sort(1).values, z.topk(shape.k, dim=1).values.sort(1).values),
        "places of the largest": (values, z.gather(1, indices)),
        "decode": (kernels.decode(pairs, flat, W), plain.decode(by_plain, flat.double(), W.double())),
        "residual": (
            kernels.residual(pairs, flat, W, W[0], g)[0],
            plain.residual(by_plain, flat.double(), W.double(), W[0].double(), g.double())[0],
        ),
        "dots": (kernels.dots(pairs, W, g), plain.dots(by_plain, W.double(), g.double())),
        "weight_gradient": (
            kernels.weight_gradient(pairs, flat, g),
            plain.weight_gradient(by_plain, flat.double(), g.double()),
        ),
        "sums": (kernels.sums(pairs, flat), plain.sums(by_plain, flat.double())),
        "remove_parallel": (grad, expected_grad),
    }
    rows = []
    for name, (mine, theirs) in found.items():
        difference = float((mine.double() - theirs.double()).abs().max() / theirs.double().abs().max())
        assert difference < TOLERANCE, f"{name} at {shape}: {difference:.1e} from its reference"
        rows.append([name, f"{difference:.1e}"])
    return table((f"kernel, {shape}", "largest difference, relative"), rows)
