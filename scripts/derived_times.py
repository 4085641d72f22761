"""Times of a TopK step on GPUs, derived from bytes, operations and instructions: nothing here is measured.

    python -m scripts.derived_times [--batch 2048 --d_in 2304 --d_sae 16384 --k 40 320] [--devices H100 H200]

Prints, for each device and k, what every part of a step moves and multiplies, its time by `sae_sweeps.kernels.cost`,
the least bytes that its mathematics needs (each input read once, each output written once, float32 where the state is
float32), and the memory that it allocates for itself; then the same of the step as it was before. The tables of
docs/cuda.md, "Derived step times", are its output.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

from sae_sweeps.kernels import cost
from sae_sweeps.kernels.cost import Cost, Device

MULTIPROCESSORS = 132
CLOCK = 1.7e9
ISSUED = 4 * MULTIPROCESSORS * CLOCK
"""Instructions of a warp that a H100 or H200 issues a second at most."""


@dataclass
class Part:
    """Of a step, one kernel or a few that follow each other."""

    name: str
    costs: list[Cost]
    """Of each kernel."""
    least: Cost
    """What the mathematics needs where nothing is read or written twice."""
    launches: int
    holds: float = 0.0
    """Bytes of memory allocated for it."""
    instructions: float = 0.0
    """Of warps, where these and not the bytes may take the time."""
    issue_share: float = 0.5
    """Part of the peak rate at which they are issued."""

    def seconds(self, device: Device) -> float:
        by_bytes = sum(one.seconds(device) for one in self.costs)
        return max(by_bytes, self.instructions / (self.issue_share * ISSUED))


@dataclass(frozen=True)
class Step:
    batch: int
    d_in: int
    d_sae: int
    k: int

    @property
    def n_pairs(self) -> int:
        return self.batch * self.k

    def by_products(self, name: str, device: Device) -> bool:
        return cost.dense_is_cheaper(name, device, self.batch, self.d_sae, self.d_in, self.n_pairs, "bfloat16")

    def operation(self, name: str, device: Device, first: bool = False) -> tuple[list[Cost], int, float, str]:
        """Costs, launches, memory held and kind (sums or products) of an operation, as the cost model chooses.

        first: of those that need f, which is written out for products once.
        """
        B, n, d, P = self.batch, self.d_sae, self.d_in, self.n_pairs
        if not self.by_products(name, device):
            rows, out = {"decode": (n, B), "dots": (n, 0), "weight_gradient": (B, n)}[name]
            parts = P * 4 * -(-d // cost.SLAB) if name == "dots" else P * 4 if name == "weight_gradient" else 0
            beside = [Cost(2.0 * parts)] if parts else []
            return [cost.sums(device, P, rows, d, out), *beside], 1 + len(beside), parts + out * d * 4, "sums"
        written = {"decode": 4.0 * B * d, "dots": 2.0 * B * n, "weight_gradient": 2.0 * n * d}[name]
        held = written + 2.0 * B * d * (name != "decode") + 2.0 * B * n * first
        return cost.dense(name, B, n, d, P, "bfloat16", first), 5, held, "products"

    def after(self, device: Device) -> Iterator[Part]:
        B, n, d, P = self.batch, self.d_sae, self.d_in, self.n_pairs
        W, x, z = 4.0 * n * d, 4.0 * B * d, 2.0 * B * n
        yield Part("x - b_dec", [Cost(2 * x)], Cost(x), 1, x)
        encoder = [Cost(1.5 * x), cost.product(B, n, d, "bfloat16", 2)]
        yield Part("encoder, in bfloat16", encoder, Cost(W + z, 0, 2.0 * B * n * d, "bfloat16"), 3, W / 2 + z)
        # as compiled for sm_90: 75 instructions for 8 numbers of a thread, and 1800 for what follows
        groups = 2 ** math.ceil(math.log2(max(1024, 4 * self.k, math.isqrt(int(1.125 * self.k) * n))))
        instructions = B * (n / 8 / 32 * 75 + min(groups // 256, 16) * 1800)
        yield Part(
            "selection of the k largest", [Cost(z + 10 * P)], Cost(z), 1, 10 * P + 4.0 * B * groups, instructions
        )
        costs, launches, holds, kind = self.operation("decode", device, first=True)
        residual = Cost(2 * x)  # x is read and the error written; the squares are summed on the way
        more = [] if kind == "sums" else [Cost(4 * x)]
        name = f"x_hat, error and its squares, by {kind}"
        yield Part(name, [*costs, *more], Cost(W + residual.memory), launches + 2, holds)
        costs, launches, holds, kind = self.operation("dots", device)
        yield Part(f"gradient of the values, by {kind}", costs, Cost(), launches, holds)  # rows read for x_hat
        # keys of 16 bits and numbers of 64 in two passes, each read and written; start, token and number gathered
        yield Part("pairs by feature", [Cost(2 * 2 * 10.0 * P), Cost(40.0 * P), Cost(8.0 * n)], Cost(), 9, 30.0 * P)
        decoded = self.by_products("decode", device)
        for weight in ("W_dec", "W_enc"):
            first = weight == "W_dec" and not decoded
            costs, launches, holds, kind = self.operation("weight_gradient", device, first)
            yield Part(f"gradient of {weight}, by {kind}", costs, Cost(W + x), launches, holds)
        yield Part("gradients of the biases", [Cost(W / 2), Cost(x), Cost(8.0 * P)], Cost(W), 7)
        gradient = W / 2 if self.by_products("weight_gradient", device) else W
        yield Part("norm of the gradients", [Cost(2 * gradient + W), Cost(8.0 * n)], Cost(), 8, 8.0 * n)
        # beside the weights and moments, W_enc in bfloat16, and W_dec where products read it
        copies = W / 2 * (1 + (decoded or self.by_products("dots", device)))
        adam = "clip, Adam, unit rows, weights in bfloat16"
        yield Part(adam, [Cost(12 * W + 2 * gradient + copies)], Cost(14 * W), 8, copies - W / 2)
        yield Part("small kernels: counts, flags, buffers, no dead feature", [Cost()] * 51, Cost(), 51)

    def before(self, device: Device) -> Iterator[Part]:
        """At the start of the work, with bytes counted the same way."""
        B, n, d, P = self.batch, self.d_sae, self.d_in, self.n_pairs
        W, x, z = 4.0 * n * d, 4.0 * B * d, 2.0 * B * n
        yield Part("x - b_dec", [Cost(2 * x)], Cost(x), 1, x)
        yield Part("encoder, in bfloat16", [Cost(1.5 * W), Cost(1.5 * x), cost.product(B, n, d, "bfloat16", 2)],
                   Cost(W + z, 0, 2.0 * B * n * d, "bfloat16"), 4)  # fmt: skip
        yield Part("z in float32", [Cost(3 * z)], Cost(), 1)
        # 32 comparisons of 64-bit integers, 4 instructions each; 8 warps hide a third of the waiting
        yield Part("selection", [Cost(2 * z)], Cost(z), 1, 0, B * 32 * n * 4 / 32, 1 / 3)
        rows = {"slab": 1024}, {"slab": d}
        yield Part("x_hat", [cost.sums(device, P, n, d, B, **rows[0])], Cost(W + 2 * x), 1)
        yield Part("error and its squares", [Cost(3 * x), Cost(2 * x), Cost(x)], Cost(), 4)
        yield Part("gradient of the values", [cost.sums(device, P, n, d, 0, **rows[1])], Cost(), 1)
        yield Part("pairs by feature", [Cost(8 * 2 * 16.0 * P), Cost(40.0 * P)], Cost(), 14)
        for weight in ("W_enc", "W_dec"):
            yield Part(f"gradient of {weight}", [cost.sums(device, P, B, d, n, **rows[0])], Cost(W + x), 1)
        yield Part("gradients of the biases", [Cost(W), Cost(x), Cost(8.0 * P)], Cost(W), 6)
        yield Part("projection and norm of the gradients", [Cost(3 * W), Cost(2 * W)], Cost(), 8)
        yield Part("Adam", [Cost(14 * W)], Cost(14 * W), 4)
        yield Part("unit rows", [Cost(W), Cost(2 * W)], Cost(), 3)
        yield Part("small kernels", [Cost()] * 60, Cost(), 60)


def table(step: Step, device: Device, parts: list[Part]) -> str:
    lines = ["| part | bytes moved (MB) | least (MB) | GFLOP | launches | holds (MB) | time (ms) |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for part in parts:
        moved, flops = (sum(getattr(one, name) for one in part.costs) for name in ("memory", "flops"))
        numbers = moved / 1e6, part.least.memory / 1e6, flops / 1e9
        cells = [part.name, *(f"{n:,.0f}" for n in numbers), str(part.launches), f"{part.holds / 1e6:,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {1e3 * part.seconds(device):.3f} |")
    moved = sum(one.memory for part in parts for one in part.costs)
    least_bytes = sum(part.least.memory for part in parts)
    least = sum(part.least.seconds(device) for part in parts if part.least.memory)
    total, launches = sum(part.seconds(device) for part in parts), sum(part.launches for part in parts)
    lines.append(
        f"| **all** | {moved / 1e6:,.0f} | {least_bytes / 1e6:,.0f} | | {launches} | | **{1e3 * total:.2f}** |"
    )
    ratio = (
        f"{moved / least_bytes:.2f} of the least bytes, {total / least:.2f} of the least time ({1e3 * least:.2f} ms)"
    )
    return "\n".join([*lines, "", f"{ratio}; {launches} launches, {0.004 * launches:.2f} ms of the host at 4 us each."])


def break_even(device: Device, batch: int, d_sae: int, d: int, precision: str) -> float:
    """Pairs per token from which on dense products take less time, decode, dots and two weight gradients together."""
    operations = ("decode", "dots", "weight_gradient", "weight_gradient")

    def gain(k: float) -> float:
        n = batch * k
        pairs = sum(cost.as_sums(one, device, batch, d_sae, d, n) for one in operations)
        return pairs - sum(cost.as_products(one, device, batch, d_sae, d, n, precision) for one in operations)

    low, high = 0.0, float(d_sae)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) > 0 else (middle, high)
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--d_in", type=int, default=2304)
    parser.add_argument("--d_sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, nargs="+", default=[40, 320])
    parser.add_argument("--devices", nargs="+", default=["H100", "H200"], choices=list(cost.DEVICES))
    parser.add_argument("--summary", action="store_true", help="totals alone")
    given = parser.parse_args()
    print("| device | k | before (ms) | now (ms) | least (ms) | now / least | bytes / least |")
    print("|---|---|---|---|---|---|---|")
    for name in given.devices:
        for k in given.k:
            step, device = Step(given.batch, given.d_in, given.d_sae, k), cost.DEVICES[name]
            before, now = (list(one(device)) for one in (step.before, step.after))
            was, total = (1e3 * sum(part.seconds(device) for part in parts) for parts in (before, now))
            least = 1e3 * sum(part.least.seconds(device) for part in now if part.least.memory)
            moved = sum(one.memory for part in now for one in part.costs)
            share = moved / sum(part.least.memory for part in now)
            print(f"| {name} | {k} | {was:.2f} | {total:.2f} | {least:.2f} | {total / least:.2f} | {share:.2f} |")
    if given.summary:
        return
    for k in given.k:
        for name in given.devices[:1]:
            step, device = Step(given.batch, given.d_in, given.d_sae, k), cost.DEVICES[name]
            print(f"\n{name}, k = {k}, now:\n\n{table(step, device, list(step.after(device)))}")
            print(f"\n{name}, k = {k}, before:\n\n{table(step, device, list(step.before(device)))}")
    print("\nPairs per token from which on dense products take less time than sums over pairs:\n")
    print("| device | float32 | TF32 | bfloat16 |\n|---|---|---|---|")
    for name, device in cost.DEVICES.items():
        ks = [break_even(device, given.batch, given.d_sae, given.d_in, p) for p in ("float32", "tf32", "bfloat16")]
        print(f"| {name} | {' | '.join(f'{k:.0f}' for k in ks)} |")


if __name__ == "__main__":
    main()
