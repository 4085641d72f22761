"""The bound of `kernels/bounded.py` on a CPU, compiled by numba: rounding, candidates for the k largest, values."""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from sae_sweeps.kernels import counting_sort, memory
from sae_sweeps.kernels.bounded import FLOOR, LARGEST, Rounded, U, V, factors
from sae_sweeps.kernels.largest_numba import (
    at_least,
    between,
    largest_of,
    n_winners,
    number_from,
    rounds,
    write_largest,
)
from sae_sweeps.kernels.listed_numba import rows_times
from sae_sweeps.kernels.threads import SUMS, array, compiled, equal_parts, over_rows

BITS, HALF = ir.IntType(32), ir.IntType(16)
MOST_CANDIDATES = 4
"""Candidates for each of a batch's largest up to which they are computed one by one."""
UNDECIDED = 1 / 64
"""Share of tokens that the bound leaves undecided up to which all their features are computed one by one."""
LANES = 16
INTERLEAVED = tuple([half + i // 2 + i % 2 * LANES for i in range(LANES)] for half in (0, LANES // 2))
"""Places of the first halves of two vectors in turn, and of the second halves."""


@intrinsic
def _to_bfloat16(typing, value):
    """The nearest bfloat16 number, ties to even, as its 16 bits; NaN may become anything."""

    def generate(context, builder, signature, arguments):
        bits, half = builder.bitcast(arguments[0], BITS), ir.Constant(BITS, 16)
        even = builder.and_(builder.lshr(bits, half), ir.Constant(BITS, 1))
        raised = builder.add(bits, builder.add(even, ir.Constant(BITS, 0x7FFF)))
        return builder.trunc(builder.lshr(raised, half), HALF)

    return types.int16(types.float32), generate


@intrinsic
def _from_bfloat16(typing, bits):
    """The number whose 16 bits these are."""

    def generate(context, builder, signature, arguments):
        wide = builder.shl(builder.zext(arguments[0], BITS), ir.Constant(BITS, 16))
        return builder.bitcast(wide, ir.FloatType())

    return types.float32(types.int16), generate


def rounded(rows: Tensor, use: str = "x'") -> Rounded:
    """Rows of float32 [n, d] in bfloat16, with their norms; the next call for this use overwrites the rounded rows."""
    near = memory.kept(use, rows.shape, torch.bfloat16)
    norms = torch.empty(3, len(rows))
    raised = np.float32(1 + (rows.shape[1] + 8) * 2.0**-24)
    over_rows(_round, len(rows), array(rows), raised, near.view(torch.int16).numpy(), *norms.numpy())
    return Rounded(near, *norms)


@compiled(**SUMS)
def _round(rows, raised, near, norm, rest, whole, start, stop):
    for i in range(start, stop):
        row, out = rows[i], near[i]
        a = b = c = np.float32(0)
        for t in range(len(row)):
            bits = _to_bfloat16(row[t])
            out[t] = bits
            value = _from_bfloat16(bits)
            left = row[t] - value
            a += value * value
            b += left * left
            c += row[t] * row[t]
        norm[i], rest[i], whole[i] = _raised(a, raised), _raised(b, raised), _raised(c, raised)


@compiled()
def _raised(squares, raised):
    """A bound of the root of a computed sum of squares; `raised` holds the roundings of sum, root and factor."""
    bound = np.sqrt(squares) * raised + np.float32(FLOOR)
    return bound if bound < LARGEST else np.float32(np.inf)


def product(x: Rounded, W: Rounded, b_enc: Tensor) -> tuple[np.ndarray, ...]:
    """What `uppers` takes of tokens x and features W: z' [B, d_sae] as bits of bfloat16, b_enc, |w'| and |w - w'|
    [d_sae], alpha and beta [B]. The next call overwrites z'."""
    z = memory.kept("z'", (len(x.rows), len(W.rows)), torch.bfloat16)
    torch.mm(x.rows, W.rows.T, out=z)
    return tuple(map(array, (z.view(torch.int16), b_enc, W.norm, W.rest, *factors(x))))


def largest(centred: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, block: int) -> tuple[Tensor, Tensor] | None:
    """`sparse_reference.largest` of centred W_enc + b_enc, exactly, by a product in bfloat16 and its bound.

    None where that leaves too many tokens undecided; then the product in float32 costs less.
    block: as `dots` has it; the values are those of the product in float32 to the last bit, or for 0 but for rounding.
    """
    given = product(rounded(centred), rounded(W_enc.T, "W_enc'"), b_enc)
    n_tokens, d_sae = given[0].shape
    count, place = np.empty(n_tokens, np.int64), np.empty((n_tokens, min(4 * k + 64, d_sae)), np.int32)
    over_rows(_candidates, n_tokens, *given, n_winners(d_sae, k), k, count, place)
    decided = count <= place.shape[1]
    undecided = np.flatnonzero(~decided)
    if len(undecided) > n_tokens * UNDECIDED:
        return None
    count[undecided] = d_sae
    start, feature = listed(place, count, decided)
    values, indices = np.empty((n_tokens, k), np.float32), np.empty((n_tokens, k), np.int64)
    z_C = dots(start, feature, W_enc, centred, block)
    over_rows(_largest_candidates, n_tokens, array(b_enc), start, feature, z_C, decided, values, indices)
    for b in undecided:  # as the bound decides nothing, all in their order
        row = z_C[start[b] : start[b + 1]].reshape(1, -1)
        values[b], indices[b] = map(array, largest_of(row, np.zeros(0, np.float32), k))
    return torch.from_numpy(values), torch.from_numpy(indices)


def above(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, guess: float, n: int, block: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Pairs with z = centred W_enc + b_enc > 0, as `sparse_reference.above` lists them, the n largest among them.

    None where the bound leaves too many undecided.
    guess: somewhat less than the n-th largest, where it is known, else 0.
    """
    given = product(rounded(centred), rounded(W_enc.T, "W_enc'"), b_enc)
    least = np.float32(max(guess, 0.0))
    while True:
        count = np.empty(len(centred), np.int64)
        over_rows(_count_uppers, len(count), *given, least, count)
        if count.min() < 0:
            return None
        start = counting_sort.starts(count)
        feature, upper, lower = np.empty(start[-1], np.int32), *np.empty((2, start[-1]), np.float32)
        over_rows(_list_uppers, len(count), *given, least, start, feature, upper, lower)
        # so many are at least as large as this one
        sure = float(np.partition(lower, len(lower) - n)[len(lower) - n]) if len(lower) >= n else 0.0
        if least == 0 or sure >= least:
            break
        least = np.float32(max(sure, 0.0))
    kept = upper >= sure if sure > 0 else upper > 0
    if kept.sum() > MOST_CANDIDATES * n:
        return None
    start, feature = np.concatenate([[0], kept.cumsum()])[start], feature[kept]
    values = dots(start, feature, W_enc, centred, block, array(b_enc))
    if values.min(initial=1.0) <= 0:
        kept = values > 0
        start, feature, values = np.concatenate([[0], kept.cumsum()])[start], feature[kept], values[kept]
    return torch.from_numpy(start), torch.from_numpy(feature.astype(np.int64)), torch.from_numpy(values)


def listed(place: np.ndarray, count: np.ndarray, decided: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start of each token [B + 1] and its candidates one after the other [P]; all features where nothing is decided.

    place [B, room] holds count [B] candidates of each decided token.
    """
    start = counting_sort.starts(count)
    feature = np.empty(start[-1], np.int32)
    over_rows(_flatten, len(count), place, start, decided, feature)
    return start, feature


def dots(
    start: np.ndarray, feature: np.ndarray, W_enc: Tensor, centred: Tensor, block: int, begin: np.ndarray | None = None
) -> np.ndarray:
    """centred_b . W_enc_i in float32 [P] for the features feature[start[b] : start[b + 1]] of each token b.

    Args:
        block: how many products are added up, one after the other by fused multiply-add, before their sum is added to
            that of the blocks before. So some libraries add up a product of matrices. 0: in the order that is fastest.
        begin: what the first block of each feature [d_sae] is added to.
    """
    by_feature, token, place = counting_sort.transposed(start, feature, W_enc.shape[1])
    found = np.empty(len(feature), np.float32)
    bounds = equal_parts(torch.from_numpy(by_feature))
    begin = np.zeros(0, np.float32) if begin is None else begin
    over_rows(
        _dots, W_enc.shape[1], array(W_enc.T), array(centred), by_feature, token, block, begin, found, bounds=bounds
    )
    out = np.empty_like(found)
    out[place] = found
    return out


@compiled(fastmath={"contract", "nsz"})
def uppers(z, bias, norm, rest, alpha, beta, up):
    """Upper bounds of a token's pre-activations [d_sae]: up = z' + b + e of (1) in `bounded`."""
    u, v = np.float32(U), np.float32(V)
    for i in range(len(up)):
        value = _from_bfloat16(z[i])
        biased = value + bias[i]
        up[i] = biased + ((alpha * norm[i] + beta * rest[i]) + (u * abs(value) + v * abs(biased)))


@intrinsic
def _multiply_add(typing, a, b, c):
    """a b + c, rounded once."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def _dots_of_lanes(typing, rows, x, size, out):
    """out[l] = the sum over t < 16 size of row l's number t times x's, one after the other by fused multiply-add.

    Addresses: `rows` of the addresses of 16 rows' numbers, `x` of numbers, `out` of 16 numbers. The rows are transposed
    16 numbers at a time, so that a vector's lanes are the rows.
    """

    def generate(context, builder, signature, arguments):
        rows, x, size, out = arguments
        long, number = ir.IntType(64), ir.FloatType()
        vector = ir.VectorType(number, LANES)
        zero, undefined = ir.Constant(vector, [0.0] * LANES), ir.Constant(vector, ir.Undefined)

        def shuffled(a, b, places):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(BITS, LANES), places))

        addresses = builder.inttoptr(rows, long.as_pointer())
        row = [
            builder.inttoptr(builder.load(builder.gep(addresses, [ir.Constant(long, i)])), number.as_pointer())
            for i in range(LANES)
        ]
        factors = builder.inttoptr(x, number.as_pointer())
        kind = ir.FunctionType(vector, [vector] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.cbranch(builder.icmp_signed(">", size, ir.Constant(long, 0)), loop, after)

        builder.position_at_end(loop)
        step, total = builder.phi(long), builder.phi(vector)
        step.add_incoming(ir.Constant(long, 0), before)
        total.add_incoming(zero, before)
        first = builder.mul(step, ir.Constant(long, LANES))
        lanes = [builder.load(builder.bitcast(builder.gep(one, [first]), vector.as_pointer()), align=4) for one in row]
        for _ in range(4):  # each interleaves the first half of the vectors with the second: a transposition after 4
            halves = zip(lanes[:8], lanes[8:], strict=True)
            lanes = [shuffled(a, b, INTERLEAVED[half]) for a, b in halves for half in (0, 1)]
        sums = total
        for i, lane in enumerate(lanes):
            factor = builder.load(builder.gep(factors, [builder.add(first, ir.Constant(long, i))]))
            alone = builder.insert_element(undefined, factor, ir.Constant(BITS, 0))
            sums = builder.call(multiply_add, [lane, shuffled(alone, undefined, [0] * LANES), sums])
        following = builder.add(step, ir.Constant(long, 1))
        step.add_incoming(following, loop)
        total.add_incoming(sums, loop)
        builder.cbranch(builder.icmp_signed("<", following, size), loop, after)

        builder.position_at_end(after)
        result = builder.phi(vector)
        result.add_incoming(zero, before)
        result.add_incoming(sums, loop)
        builder.store(result, builder.inttoptr(out, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@compiled()
def _candidates(z, bias, norm, rest, alpha, beta, sizes, k, count, place, start, stop):
    """What may be among the k largest of each token: how many, and which unless more than fit into a row.

    The order is that in which `largest_numba._largest` finds them.
    """
    n, room = z.shape[1], place.shape[1]
    best = [np.empty(size, np.float32) for size in sizes]
    one, other, lower = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.empty(n + 1, np.float32)
    up, most, infinite = np.empty(n, np.float32), np.finfo(np.float32).max, np.float32(np.inf)
    for b in range(start, stop):
        uppers(z[b], bias, norm, rest, alpha[b], beta[b], up)
        if not np.isfinite(rounds(up, best)):
            count[b] = n + 1
            continue
        low, _ = between(best[-1] if len(best) > 1 else up, k, most, infinite, k >> 3)
        places, found = at_least(up, best, low, one, other)
        for i in range(found):  # k large lower bounds: the least of them is below k pre-activations
            at = places[i]
            value = _from_bfloat16(z[b, at])
            lower[i] = value + bias[at] - (up[at] - (value + bias[at]))
        least, _ = between(lower[:found], k, most, infinite, 0)
        places, found = at_least(up, best, least, one, other)
        count[b] = found
        if found <= room:
            for i in range(found):
                place[b, i] = places[i]


@compiled()
def _count_uppers(z, bias, norm, rest, alpha, beta, least, count, start, stop):
    """How many of each token have an upper bound of at least `least`; -1 where one is not finite."""
    up = np.empty(z.shape[1], np.float32)
    for b in range(start, stop):
        uppers(z[b], bias, norm, rest, alpha[b], beta[b], up)
        count[b] = number_from(up, least) if np.isfinite(up.sum()) else -1


@compiled()
def _list_uppers(z, bias, norm, rest, alpha, beta, least, first, feature, upper, lower, start, stop):
    up = np.empty(z.shape[1], np.float32)
    for b in range(start, stop):
        uppers(z[b], bias, norm, rest, alpha[b], beta[b], up)
        p = first[b]
        for block in range(0, len(up), 32):
            end = min(block + 32, len(up))
            if number_from(up[block:end], least):
                for i in range(block, end):
                    if up[i] >= least:
                        middle = _from_bfloat16(z[b, i]) + bias[i]
                        feature[p], upper[p], lower[p] = i, up[i], middle - (up[i] - middle)
                        p += 1


@compiled()
def _flatten(place, first, decided, feature, start, stop):
    for b in range(start, stop):
        n = first[b + 1] - first[b]
        for i in range(n):
            feature[first[b] + i] = place[b, i] if decided[b] else i


@compiled()
def _dots(W, x, first, token, block, begin, out, start, stop):
    d, rows, sums = W.shape[1], np.empty(LANES, np.int64), np.empty(LANES, np.float32)
    if block == 0:
        for i in range(start, stop):
            rows_times(token, x, (0, d), first[i], first[i + 1], W[i], out)
            if len(begin):
                for p in range(first[i], first[i + 1]):
                    out[p] += begin[i]
        return
    for t in range(0, d, block):  # one part of all tokens after the other, as it may fit into the cache
        last = min(t + block, d)
        whole = (last - t) // LANES
        for i in range(start, stop):
            w = W[i]
            for p in range(first[i], first[i + 1], LANES):
                n = min(LANES, first[i + 1] - p)
                for lane in range(LANES):
                    rows[lane] = x.ctypes.data + token[p + min(lane, n - 1)] * x.strides[0] + 4 * t
                _dots_of_lanes(rows.ctypes.data, w.ctypes.data + 4 * t, whole, sums.ctypes.data)
                for lane in range(n):
                    one, row = sums[lane], x[token[p + lane]]
                    for s in range(t + whole * LANES, last):
                        one = _multiply_add(w[s], row[s], one)
                    if t > 0:
                        one += out[p + lane]
                    elif len(begin):
                        one += begin[i]
                    out[p + lane] = one


@compiled()
def _largest_candidates(bias, first, feature, z, decided, values, indices, start, stop):
    """The k largest candidates of each token; z [P] gets the bias. Both lists are overwritten."""
    for b in range(start, stop):
        places, candidate = feature[first[b] : first[b + 1]], z[first[b] : first[b + 1]]
        for i in range(len(places)):
            candidate[i] += bias[places[i]]
        if decided[b]:
            write_largest(candidate, places, len(places), values[b], indices[b])
