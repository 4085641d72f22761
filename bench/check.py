"""Each fast kernel beside its plain reference in float64, at full size, on the device itself, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data import Shape
from bench.results import Results
from bench.setting import Setting
from bench.timing import seconds
from sae_sweeps.kernels import sparse_reference as plain
from sae_sweeps.kernels.choose import choose
from sae_sweeps.kernels.pairs import Pairs, per_token


class TooFar(Exception):
    """Kernels that are further from their reference than they may be."""


@dataclass
class Case:
    kernel: str
    fast: Callable[[], Tensor]
    reference: Callable[[], Tensor]
    """The same in float64."""
    n_bytes: int
    """Least that must be read and written."""
    tolerance: float = 1e-4
    """Largest difference, relative to the largest value."""


def check(setting: Setting, results: Results) -> None:
    """Every kernel at the shapes that are measured. Raises TooFar at the end, after measuring all."""
    wrong = []
    for shape in setting.shapes():
        for case in cases(shape):
            expected, found = case.reference(), case.fast()
            difference = float((found.double() - expected).abs().max() / expected.abs().max())
            if not difference < case.tolerance:
                wrong.append(f"{case.kernel} at {shape}: {difference:.1e}")
            took = seconds(case.fast, shape.device, times=3 if setting.small else 15)
            row = {
                "kernel": case.kernel,
                "difference": difference,
                "allowed": case.tolerance,
                "ms": 1e3 * took,
                "GB/s of the least it must move": case.n_bytes / took / 1e9,
            }
            results.add(f"{shape}; the largest difference is relative to the largest value", row)
    if wrong:
        raise TooFar("; ".join(wrong))


def cases(shape: Shape) -> Iterator[Case]:
    device = torch.device(shape.device)
    kernels = choose("auto", device)
    if kernels is None:
        raise TooFar(f"there are no fast kernels for {device} here: is triton installed?")
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    z, W, g = normal(shape.batch, shape.d_sae), normal(shape.d_sae, shape.d_in), normal(shape.batch, shape.d_in)
    values, indices = kernels.largest(z, shape.k)
    pairs = per_token(indices, shape.d_sae, kernels)
    by_plain = Pairs(pairs.start, pairs.feature, shape.d_sae, plain)
    flat, n = values.reshape(-1), 4 * values.numel()
    yield Case(
        "largest: values",
        lambda: kernels.largest(z, shape.k)[0].sort(1).values,
        lambda: z.double().topk(shape.k, dim=1).values.sort(1).values,
        z.nbytes + 3 * n,
        1e-30,
    )
    yield Case("largest: places", lambda: z.gather(1, indices), lambda: values.double(), 6 * n, 1e-30)
    pairs.transposed, by_plain.transposed  # noqa: B018  # made once for the kernels below
    yield Case(
        "decode",
        lambda: kernels.decode(pairs, flat, W),
        lambda: plain.decode(by_plain, flat.double(), W.double()),
        W.nbytes + g.nbytes + 3 * n,
    )
    yield Case(
        "residual",
        lambda: kernels.residual(pairs, flat, W, W[0], g)[0],
        lambda: plain.residual(by_plain, flat.double(), W.double(), W[0].double(), g.double())[0],
        W.nbytes + 2 * g.nbytes + 4 * n,
    )
    yield Case(
        "dots",
        lambda: kernels.dots(pairs, W, g),
        lambda: plain.dots(by_plain, W.double(), g.double()),
        W.nbytes + g.nbytes + 3 * n,
    )
    yield Case(
        "weight_gradient",
        lambda: kernels.weight_gradient(pairs, flat, g),
        lambda: plain.weight_gradient(by_plain, flat.double(), g.double()),
        W.nbytes + g.nbytes + 3 * n,
    )
    yield Case("sums", lambda: kernels.sums(pairs, flat), lambda: plain.sums(by_plain, flat.double()), 2 * n)
    grad, unit = normal(shape.d_sae, shape.d_in), torch.nn.functional.normalize(W, dim=1)

    def without_parallel(kernels: object, grad: Tensor, unit: Tensor) -> Tensor:
        kernels.remove_parallel(grad, unit)  # type: ignore[attr-defined]
        return grad

    yield Case(
        "remove_parallel",  # again, nothing is left to remove
        lambda: without_parallel(kernels, grad, unit),
        lambda: without_parallel(plain, grad.double(), unit.double()),
        3 * W.nbytes,
    )
