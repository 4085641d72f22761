"""Each fast kernel beside its plain reference in float64, at full size, on the device itself, and how long it takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.data import Shape
from bench.results import Results
from bench.setting import ROOT, Setting
from bench.timing import seconds
from sae_sweeps.kernels import sparse_reference as plain
from sae_sweeps.kernels.choose import choose, pairwise
from sae_sweeps.kernels.coactivation import competing_cosines
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.features import TopKFeatures
from sae_sweeps.kernels.pairs import Pairs, per_token

if TYPE_CHECKING:
    from sae_sweeps.training.step import Training


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
            difference = _difference(found, expected)
            if not difference < case.tolerance:
                wrong.append(f"{case.kernel} at {shape}: {difference:.1e}")
            took = seconds(case.fast, shape.device, *((1, 0) if setting.small else ()))
            row = {
                "kernel": case.kernel,
                "difference": difference,
                "allowed": case.tolerance,
                "ms": 1e3 * took,
                "GB/s of the least it must move": case.n_bytes / took / 1e9,
            }
            results.add(f"{shape}; the largest difference is relative to the largest value", row)
    if importlib.util.find_spec("hydra"):
        wrong += penalties(setting, results)
    if wrong:
        raise TooFar("; ".join(wrong))


def penalties(setting: Setting, results: Results) -> list[str]:
    """Every penalty's loss and gradient beside the plain formulas in float64, on the same features; those too far."""
    from bench.contenders import as_batches, trainings

    shape, wrong = setting.shapes()[0], []
    names = sorted(path.stem for path in (ROOT / "conf" / "penalty").glob("*.yaml") if path.stem != "none")
    words = f"penalty={'+'.join(names)} num_tokens={100 * shape.batch} penalty.adaptive_sharing.tau=10"  # acts at once
    (fast,) = trainings(replace(shape, bfloat16=False), words)
    (plain,) = trainings(replace(shape, bfloat16=False), f"{words} train.precision=float64 train.kernels=reference")
    batch, step = as_batches(shape)[0], 50
    found = fast.forward(batch, step)
    assert isinstance(found.ctx.feature_acts, TopKFeatures)
    indices = found.ctx.feature_acts.indices

    def same_features(pre_acts: Tensor, step: int) -> TopKFeatures:
        return TopKFeatures(pre_acts.gather(1, indices).relu(), indices, shape.d_sae)

    plain.sae.activate = same_features  # type: ignore[method-assign]
    expected = plain.forward(batch, step)
    for name in names:
        row: dict[str, object] = {"penalty": name}
        one, other = found.parts[name][0], expected.parts[name][0]
        row["loss"] = _difference(one[None], other[None])
        for weight in ("W_enc", "W_dec"):
            grads = [
                torch.autograd.grad(loss, getattr(training.sae, weight), retain_graph=True, allow_unused=True)[0]
                for loss, training in ((one, fast), (other, plain))
            ]
            row[f"gradient of {weight}"] = "" if grads[1] is None else _difference(grads[0], grads[1])
        row["allowed"] = Case.tolerance
        results.add(f"Penalties, {replace(shape, bfloat16=False)}; largest difference, relative", row)
        if any(isinstance(value, float) and not value <= Case.tolerance for value in row.values()):
            wrong.append(f"penalty {name}: {row}")
    del found, expected
    difference = update(setting, results, fast, plain)
    return wrong if difference < Case.tolerance else [*wrong, f"the update: {difference:.1e}"]


def update(setting: Setting, results: Results, fast: Training, plain: Training) -> float:
    """Two updates (projection, norm, clipping, Adam, unit rows) from the same gradients: how far the weights are."""
    start = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    generator = torch.Generator().manual_seed(1)

    def once(training: Training, grads: dict[str, Tensor]) -> None:
        for name, weight in training.named_parameters():
            weight.grad = torch.empty_like(weight).copy_(grads[name])
        norm = training.optimizer.project_gradients()
        training.optimizer.step(1e-2, (norm + 1e-6).clamp(min=1.0), None)

    for _ in range(2):
        grads = {name: torch.randn(weight.shape, generator=generator) for name, weight in start.items()}
        once(fast, grads)
        once(plain, grads)
    weights = dict(fast.named_parameters())
    gaps = {
        name: float(
            (weights[name].detach().double() - weight.detach()).abs().max()
            / (weight.detach() - start[name]).abs().max()
        )
        for name, weight in plain.named_parameters()
    }
    worst, largest = max(gaps, key=lambda name: gaps[name]), max(weight.numel() for weight in start.values())
    on_device = {name: grad.to(setting.device) for name, grad in grads.items()}
    took = seconds(lambda: once(fast, on_device), setting.device, *((1, 0) if setting.small else (10, 2)))
    row = {
        "of": worst,
        "difference": gaps[worst],
        "allowed": Case.tolerance,
        "ms, with copying gradients": 1e3 * took,
    }
    results.add(f"Two updates, largest matrix of {largest:,} numbers; difference relative to the largest change", row)
    return gaps[worst]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found.double() - expected).detach().abs().max() / expected.detach().abs().max().clamp_min(1e-300))


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
    pairs.transposed  # noqa: B018  # made once for the kernels below
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
    f = TopKFeatures(values.relu(), indices, shape.d_sae, pairs)
    f_double = TopKFeatures(f.values.double(), indices, shape.d_sae)
    way, tiles = pairwise(kernels, W), 3 * unit.nbytes + shape.batch * shape.d_sae
    yield Case(
        "ortho: value", lambda: ortho(unit, f, way)[0], lambda: ortho(unit.double(), f_double, "plain")[0], tiles
    )
    yield Case(
        "ortho: pairs", lambda: ortho(unit, f, way)[1], lambda: ortho(unit.double(), f_double, "plain")[1], tiles
    )
    yield Case(
        "ortho: gradient", lambda: ortho(unit, f, way)[2], lambda: ortho(unit.double(), f_double, "plain")[2], tiles
    )


def ortho(W: Tensor, f: TopKFeatures, way: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value and number of competing pairs, both [1], and gradient [d_sae, d_in] of the sum over competing pairs."""
    W = W.detach().requires_grad_()
    value, pairs = competing_cosines(W, f, f.n_tokens, Competition("jaccard", "linear", 0.0123, 0.1), way)
    n_pairs = torch.as_tensor(pairs, device=W.device).double()  # a number where pairs are listed
    return value.detach()[None], n_pairs[None], torch.autograd.grad(value, W)[0]
