"""What an operation of a training step costs on a GPU, from the bytes that it moves and the numbers it multiplies.

The time of a kernel is the largest of three, each derived from a data sheet and no measurement:

    bytes from memory / (MEMORY_SHARE * memory bandwidth)
    bytes from the L2 cache / L2 bandwidth
    floating-point operations / (PRODUCT_SHARE * peak of the precision)

Sums over pairs gather one row of d numbers for each of P pairs, in slabs of SLAB columns, one after the other. The rows
come out of the L2 cache, P d numbers in all; they get there from memory once where a slab of all rows fits into half
of it (the other half holds what is written), else as often as they are not there:

    sums(P, rows, d)      max(P d s / L2 bandwidth, (rows d s + missing + written) / memory bandwidth)

The same by dense products, f [B, d_sae] with k numbers a row written out, 2 B d_sae d operations, whatever k is:

    dense(B, d_sae, d)    write f, read f and W, write the result; 2 B d_sae d operations

f is written once a step, later operations put other values at its pairs. In bfloat16 the weights are there already
(`rounded`: 2 bytes a number, written by the optimizer for decode and dots together), and products whose result is a
gradient are given in bfloat16.

So pairs cost with k, products do not, and products are cheaper from some k on, which depends on the precision of the
products: in float32 a GPU multiplies 15 times slower than in bfloat16. `dense_is_cheaper` decides by these formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

MEMORY_SHARE = 0.92
"""Part of the memory's bandwidth that a kernel gets which reads and writes long rows."""
PRODUCT_SHARE = 0.65
"""Part of the peak that large matrix products reach."""
LEAST = 3e-6
"""Seconds that the smallest kernel takes."""
SLAB = 256
"""Columns that a program of the sums over pairs takes."""


@dataclass(frozen=True, eq=False)
class Device:
    """A GPU's data sheet (SXM form); bandwidths in bytes/s, products in operations/s, without sparsity."""

    name: str
    memory: float
    l2: float
    """Bandwidth of the L2 cache as others measured it; an assumption for those not yet measured (B200)."""
    l2_bytes: float
    flops: dict[str, float]
    """Precision of a product -> peak."""


_HOPPER = {"float64": 67e12, "float32": 67e12, "tf32": 494e12, "bfloat16": 989e12, "float16": 989e12}
DEVICES = {
    "A100": Device("A100", 2.04e12, 4.5e12, 40e6,
                   {"float64": 19.5e12, "float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12, "float16": 312e12}),
    "H100": Device("H100", 3.35e12, 5.5e12, 50e6, _HOPPER),
    "H200": Device("H200", 4.8e12, 5.5e12, 50e6, _HOPPER),
    "B200": Device("B200", 8.0e12, 9.0e12, 126e6,
                   {"float64": 37e12, "float32": 75e12, "tf32": 1100e12, "bfloat16": 2250e12, "float16": 2250e12}),
}  # fmt: skip
BY_CAPABILITY = {8: "A100", 9: "H100", 10: "B200", 12: "B200"}
"""First number of a compute capability -> the device whose numbers are taken where its name is not in `DEVICES`."""


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of a kernel."""

    memory: float = 0.0
    """Bytes that it reads from memory or writes there."""
    l2: float = 0.0
    """Bytes that it reads out of the L2 cache, those from memory among them."""
    flops: float = 0.0
    precision: str = "float32"
    """Of its products, a key of `Device.flops`."""

    def seconds(self, device: Device) -> float:
        memory = self.memory / (MEMORY_SHARE * device.memory)
        products = self.flops / (PRODUCT_SHARE * device.flops[self.precision])
        return max(LEAST, memory, self.l2 / device.l2, products)


def sums(
    device: Device, n_pairs: float, n_rows: int, d: int, n_out: int = 0, itemsize: int = 4, slab: int = SLAB
) -> Cost:
    """Sums over pairs of rows from a table [n_rows, d], or their dot products; n_out rows of d are written."""
    table, gathered = n_rows * d * itemsize, n_pairs * d * itemsize
    held = min(1.0, 0.5 * device.l2_bytes / (n_rows * min(slab, d) * itemsize))
    from_memory = min(gathered, table) if held == 1.0 else gathered * (1 - held) + min(gathered, table) * held
    written = n_out * d * itemsize
    return Cost(from_memory + written, gathered + written)


def itemsize_of(precision: str) -> int:
    """Bytes of a factor of a product."""
    return {"bfloat16": 2, "float16": 2, "float64": 8}.get(precision, 4)


def product(m: int, n: int, inner: int, precision: str, out_itemsize: int = 4) -> Cost:
    """A dense product [m, inner] x [inner, n]."""
    itemsize = itemsize_of(precision)
    moved = (m + n) * inner * itemsize + m * n * out_itemsize
    return Cost(moved, moved, 2.0 * m * n * inner, precision)


def at_pairs(n_pairs: float) -> Cost:
    """A matrix [B, d_sae] read or written at pairs alone: each a sector of 32 bytes, its place and its value."""
    return Cost(n_pairs * (32 + 12))


def written_out(batch: int, d_sae: int, n_pairs: float, precision: str) -> Cost:
    """f [B, d_sae] from its pairs: zeros, then each value at its place."""
    return Cost(batch * d_sae * itemsize_of(precision) + at_pairs(n_pairs).memory)


def as_sums(operation: str, device: Device, batch: int, d_sae: int, d: int, n_pairs: float, itemsize: int = 4) -> float:
    """Seconds of an operation by sums over pairs."""
    rows, n_out = {"decode": (d_sae, batch), "dots": (d_sae, 0), "weight_gradient": (batch, d_sae)}[operation]
    return sums(device, n_pairs, rows, d, n_out, itemsize).seconds(device)


def as_products(
    operation: str, device: Device, batch: int, d_sae: int, d: int, n_pairs: float, precision: str
) -> float:
    """Seconds of an operation by a dense product, with writing f out or reading the products at the pairs."""
    costs = dense(operation, batch, d_sae, d, n_pairs, precision, first=operation == "decode")
    if operation == "decode" and itemsize_of(precision) < 4:
        costs.append(Cost(2.0 * d_sae * d))  # the optimizer writes the weights for decode and dots
    return sum(cost.seconds(device) for cost in costs)


def dense(operation: str, batch: int, d_sae: int, d: int, n_pairs: float, precision: str, first: bool) -> list[Cost]:
    """Kernels of an operation by a dense product; `first`: of the step's with f."""
    shape = {"decode": (batch, d, d_sae), "dots": (batch, d_sae, d), "weight_gradient": (d_sae, d, batch)}[operation]
    rounds, gradient = itemsize_of(precision) < 4, operation != "decode"
    beside = written_out(batch, d_sae, n_pairs, precision) if first else at_pairs(n_pairs)
    costs = [product(*shape, precision, 2 if rounds and gradient else 4), beside]
    return [*costs, Cost(6.0 * batch * d)] if rounds and gradient else costs  # the rows in that precision


@lru_cache(maxsize=1024)
def dense_is_cheaper(
    operation: str, device: Device, batch: int, d_sae: int, d: int, n_pairs: int, precision: str, itemsize: int = 4
) -> bool:
    """Whether a dense product takes less time than sums over n_pairs pairs."""
    dense = as_products(operation, device, batch, d_sae, d, n_pairs, precision)
    return dense < as_sums(operation, device, batch, d_sae, d, n_pairs, itemsize)


@lru_cache(maxsize=8)
def device_of(index: int | None) -> Device:
    """The data sheet of a GPU of this machine, by its name, else by its compute capability."""
    if not torch.cuda.is_available():
        return DEVICES["H100"]
    name = torch.cuda.get_device_name(index)
    found = next((device for word, device in DEVICES.items() if word in name), None)
    return found or DEVICES[BY_CAPABILITY.get(torch.cuda.get_device_capability(index)[0], "A100")]


def precision_of(dtype: torch.dtype) -> str:
    """Key of `Device.flops` for products of tensors of this dtype, by torch's setting for TF32."""
    if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return str(dtype).removeprefix("torch.")
