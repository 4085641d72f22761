"""Each fast kernel beside its plain reference in float64, at full size, on the device itself, and how long it takes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.data import Shape
from bench.results import Results
from bench.setting import ROOT, Setting
from bench.timing import seconds
from sae_sweeps.kernels import cost
from sae_sweeps.kernels import sparse_reference as plain
from sae_sweeps.kernels.choose import choose, pairwise
from sae_sweeps.kernels.coactivation import competing_cosines
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.features import TopKFeatures
from sae_sweeps.kernels.pairs import Pairs, per_token

if TYPE_CHECKING:
    from sae_sweeps.training.step import Training


BFLOAT16 = 0.03
"""As `Case.tolerance`, for products in bfloat16: eight bits, in several products one after the other."""
HALF = 50
"""The step at which losses are compared: every penalty acts there."""
BY_MAXIMUM = {"ortsae": 0.02}
"""Penalties in which rounding may choose another row for one of many, and how far their gradients' norms may be."""


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
    ordered: bool = True
    """False: the numbers of a row may come in any order."""
    flops: float = 0.0
    """Of its matrix products, in `precision`."""
    precision: str = "float32"
    operations: Sequence[str] = ()
    """Those on pairs that it consists of; each is taken by sums or by dense products, whichever takes less time."""

    def difference(self) -> float:
        found, expected = self.fast().double(), self.reference()
        return _difference(found, expected) if self.ordered else _difference(found.sort(1)[0], expected.sort(1)[0])

    def derived(self, shape: Shape) -> float:
        """Seconds by the GPU's data sheet, see kernels/cost.py."""
        device = cost.device_of(torch.cuda.current_device())
        sizes = device, shape.batch, shape.d_sae, shape.d_in, shape.batch * shape.k
        if not self.operations:
            return cost.Cost(self.n_bytes, self.n_bytes, self.flops, self.precision).seconds(device)
        return sum(
            min(cost.as_sums(operation, *sizes), cost.as_products(operation, *sizes, self.precision))
            for operation in self.operations
        )


def check(setting: Setting, results: Results) -> None:
    """Every kernel at the shapes that are measured. Raises TooFar at the end, after measuring all."""
    wrong = []
    for shape in setting.shapes():
        for case in cases(shape):
            difference = case.difference()
            if not difference < case.tolerance:
                wrong.append(f"{case.kernel} at {shape}: {difference:.1e}")
            took = seconds(case.fast, shape.device, *((1, 0) if setting.small else ()))
            row = {"kernel": case.kernel, "difference": difference, "allowed": case.tolerance, "ms": 1e3 * took}
            row |= {"derived ms": 1e3 * case.derived(shape)} if shape.device == "cuda" else {}
            row["GB/s of the least it must move"] = case.n_bytes / took / 1e9
            results.add(f"{shape}; the largest difference is relative to the largest value", row)
    if importlib.util.find_spec("hydra"):
        wrong += in_training(setting, results)
    if wrong:
        raise TooFar("; ".join(wrong))


def in_training(setting: Setting, results: Results) -> list[str]:
    """Losses, gradients and the update of Training beside the plain formulas in float64; those that are too far."""
    shape = replace(setting.shapes()[0], bfloat16=False)
    names = sorted(path.stem for path in (ROOT / "conf" / "penalty").glob("*.yaml") if path.stem != "none")
    penalties = f"penalty={'+'.join(names)} penalty.adaptive_sharing.tau=10"  # acts at once
    precisions = {"float32": Case.tolerance} | ({"bfloat16": BFLOAT16} if shape.device == "cuda" else {})
    wrong = []
    for words, terms in ((penalties, names), ("architecture.aux_weight=0.03", [])):
        plain = _training(shape, f"{words} train.precision=float64 train.kernels=reference")
        trainings = {precision: _training(shape, f"{words} train.precision={precision}") for precision in precisions}
        for precision, fast in trainings.items():
            for row in losses(fast, plain, shape, terms):
                allowed = max(precisions[precision], BY_MAXIMUM.get(str(row["of"]), 0.0))
                row |= {"precision": precision, "allowed": allowed}
                results.add(f"Losses in training, {shape}; largest difference, relative", row)
                if any(isinstance(value, float) and not value <= allowed for value in row.values()):
                    wrong.append(f"{row['of']} in {precision} at {shape}")
    difference = update(setting, results, trainings["float32"], plain)
    return wrong if difference < Case.tolerance else [*wrong, f"the update: {difference:.1e}"]


def _training(shape: Shape, words: str) -> Training:
    """A run at its half, of whose features as many are dead as the auxiliary loss takes: it has none to choose."""
    from bench.contenders import trainings

    (training,) = trainings(shape, f"{words} num_tokens={2 * HALF * shape.batch}")
    training.sae.tokens_since_fired[: shape.d_in // 2] = 10**12
    with torch.no_grad():
        training.sae.W_dec.copy_(apart_from_orthogonal(training.sae.W_dec))
    return training


def apart_from_orthogonal(W: Tensor) -> Tensor:
    """Unit rows of which no two are nearly orthogonal, so that no cosine's sign is a matter of rounding; W [n, d]."""
    sign = torch.ones(len(W), 1, device=W.device, dtype=W.dtype)
    sign[::2] = -1
    unit = torch.nn.functional.normalize(W, dim=1)
    return torch.nn.functional.normalize(unit + sign * W.shape[1] ** -0.5, dim=1)


def losses(fast: Training, plain: Training, shape: Shape, terms: list[str]) -> Iterator[dict[str, object]]:
    """For each term, or the whole loss, how far it and its gradients are, on the same active features."""
    from bench.contenders import as_batches

    batch = as_batches(shape)[0]
    found = fast.forward(batch, HALF)
    assert isinstance(found.ctx.feature_acts, TopKFeatures)
    indices = found.ctx.feature_acts.indices

    def same_features(pre_acts: Tensor, step: int) -> TopKFeatures:
        return TopKFeatures(pre_acts.gather(1, indices).relu(), indices, shape.d_sae)

    plain.sae.activate = same_features  # type: ignore[method-assign]
    expected = plain.forward(batch, HALF)
    pairs = {name: (found.parts[name][0], expected.parts[name][0]) for name in terms}
    for name, (one, other) in (pairs or {"recon and aux": (found.loss, expected.loss)}).items():
        how = _apart if name in BY_MAXIMUM else _difference
        row: dict[str, object] = {"of": name, "loss": _difference(one[None], other[None])}
        for weight in ("W_enc", "W_dec"):
            mine, theirs = (
                torch.autograd.grad(loss, getattr(training.sae, weight), retain_graph=True, allow_unused=True)[0]
                for loss, training in ((one, fast), (other, plain))
            )
            row[f"gradient of {weight}"] = "" if theirs is None else how(mine, theirs)
        yield row


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


def _apart(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to the norm."""
    return float((found.double() - expected).detach().norm() / expected.detach().norm().clamp_min(1e-300))


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
    n = 4 * values.numel()
    for rows in (z, z.bfloat16()) if shape.device == "cuda" else (z,):
        yield Case(
            f"largest, {rows.dtype}".replace("torch.", ""),
            lambda rows=rows: kernels.largest(rows, shape.k)[0],  # type: ignore[misc]
            lambda rows=rows: rows.double().topk(shape.k, dim=1).values,  # type: ignore[misc]
            rows.nbytes + 3 * n,
            1e-30,
            ordered=False,
        )
    yield Case("largest, places", lambda: z.gather(1, indices), lambda: values.double(), 6 * n, 1e-30)
    yield from on_pairs(kernels, indices, values, W, g, "float32")
    if shape.device == "cuda":  # dense products in their place may be in bfloat16, as in a run
        yield from on_pairs(kernels, indices, values, W, g, "bfloat16", BFLOAT16)
    grad, unit = normal(shape.d_sae, shape.d_in), apart_from_orthogonal(W)

    def without_parallel(kernels: Any, grad: Tensor, unit: Tensor) -> Tensor:
        kernels.remove_parallel(grad, unit)
        return grad

    yield Case(
        "remove_parallel",  # again, nothing is left to remove
        lambda: without_parallel(kernels, grad, unit),
        lambda: without_parallel(plain, grad.double(), unit.double()),
        3 * W.nbytes,
    )
    f = TopKFeatures(values.relu(), indices, shape.d_sae, per_token(indices, shape.d_sae, kernels))
    f_double = TopKFeatures(f.values.double(), indices, shape.d_sae)
    way, n_bytes = pairwise(kernels, W), 3 * unit.nbytes + shape.batch * shape.d_sae
    # counts of common tokens, cosines and both halves of the gradient, for the tiles above the diagonal
    flops = shape.d_sae**2 * (shape.batch + 3 * shape.d_in)
    for number, part in enumerate(("value", "pairs", "gradient")):
        yield Case(
            f"ortho, {part}",
            lambda number=number: ortho(unit, f, way)[number],  # type: ignore[misc]
            lambda number=number: ortho(unit.double(), f_double, "plain")[number],  # type: ignore[misc]
            n_bytes,
            flops=flops,
        )


def on_pairs(
    kernels: Any, indices: Tensor, values: Tensor, W: Tensor, g: Tensor, precision: str, tolerance: float = 1e-4
) -> Iterator[Case]:
    """The operations on the pairs of k features for each token, indices and values [B, k]; W [d_sae, d], g [B, d]."""
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):  # the pairs remember it
        pairs, flat, n = per_token(indices, len(W), kernels), values.reshape(-1), 4 * values.numel()
    pairs.transposed  # noqa: B018  # made once for those that need it
    double: Any = Pairs(pairs.start, pairs.feature, len(W), plain)  # type: ignore[arg-type]
    f64, W64, g64 = flat.double, W.double, g.double
    moved = W.nbytes + g.nbytes + 3 * n

    def case(name: str, fast: Any, reference: Any, n_bytes: int, *operations: str) -> Case:
        label = f"{name}, {precision}"
        return Case(label, fast, reference, n_bytes, tolerance, precision=precision, operations=operations)

    yield case(
        "decode",
        lambda: kernels.decode(pairs, flat, W),
        lambda: plain.decode(double, f64(), W64()),
        moved,
        "decode",
    )
    yield case(
        "residual",
        lambda: kernels.residual(pairs, flat, W, W[0], g)[0],
        lambda: plain.residual(double, f64(), W64(), W64()[0], g64())[0],
        moved + g.nbytes + n,
        "decode",
        "dots",
    )
    yield case("dots", lambda: kernels.dots(pairs, W, g), lambda: plain.dots(double, W64(), g64()), moved, "dots")
    yield case(
        "weight_gradient",
        lambda: kernels.weight_gradient(pairs, flat, g),
        lambda: plain.weight_gradient(double, f64(), g64()),
        moved,
        "weight_gradient",
    )
    if precision == "float32":
        yield Case("sums", lambda: kernels.sums(pairs, flat), lambda: plain.sums(double, f64()), 2 * n)


def ortho(W: Tensor, f: TopKFeatures, way: str) -> tuple[Tensor, Tensor, Tensor]:
    """Value and number of competing pairs, both [1], and gradient [d_sae, d_in] of the sum over competing pairs."""
    W = W.detach().requires_grad_()
    value, pairs = competing_cosines(W, f, f.n_tokens, Competition("jaccard", "linear", 0.0123, 0.1), way)
    n_pairs = torch.as_tensor(pairs, device=W.device).double()  # a number where pairs are listed
    return value.detach()[None], n_pairs[None], torch.autograd.grad(value, W)[0]
