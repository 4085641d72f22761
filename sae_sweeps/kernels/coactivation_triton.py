"""Competing cosines on a GPU, in tiles of pairs that are skipped where no two features compete.

Features are taken in the order of how often they are active, so that pairs that compete lie close together. For each
tile [BLOCK, BLOCK] on and above the diagonal `_weigh` counts common tokens, unless no two of its features can overlap
enough; where some c_ij > 0, `_sign` takes the cosines and `_add_products` multiplies c_ij sign(w_i . w_j) with W.
Nothing is read, and the order of all sums depends on the batch alone.

Counts are exact: products of 0 and 1 in float16, added up in float32, below 2^24 tokens. Weights and c_ij, at most 1,
are split into two float16 parts, x = high + low + e with |e| <= 2^-22 |x| + 2^-25, and low * low <= 2^-22 is dropped. A
cosine of unit rows is therefore off by at most 3 * 2^-22 + 2^-24 sqrt(d), 4e-6 at d = 2304, and by the rounding of a
float32 sum of 3 d terms; the gradient by that share of sum_j c_ij |w_j|. Where a cosine is smaller than its error, its
sign may be the other one.
"""

# mypy: ignore-errors
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from sae_sweeps.kernels.competition import Competition, Found
from sae_sweeps.kernels.features import Features, TopKFeatures
from sae_sweeps.kernels.launching import StepShape, launch

BLOCK = 128
"""Features in a tile, each way; also columns of W at a time."""
DEPTH = 64
"""Tokens, dimensions or features at a time in a product; half of them where both factors have two parts."""
PANEL = 4096
"""Rows of tiles that are held at once: 4 bytes for each of their PANEL * d_sae pairs."""
OVERLAPS = ("jaccard", "min", "cosine", "batch")


def by_tiles(W: Tensor, f: Features, n_tokens: int, competition: Competition) -> Found:
    """As `coactivation_tiles.by_tiles`; W in float32."""
    n, d = W.shape
    active = (f.dense() > 0).T
    n_active, order = active.sum(1).sort(descending=True, stable=True)
    room = -n % BLOCK
    ones = pad(active[order].half(), (0, -n_tokens % DEPTH, 0, room)).contiguous()
    ordered = pad(W[order], (0, -d % BLOCK, 0, room))
    high = ordered.half()
    low = (ordered - high).half()
    found, grad = _in_panels(ones, pad(n_active.int(), (0, room)), high, low, n_tokens, competition)
    value, pairs = found.sum(0, dtype=torch.float64)
    return value.to(W.dtype), pairs.long(), torch.empty_like(W).index_copy_(0, order, grad[:n, :d])


def _in_panels(
    ones: Tensor, n_active: Tensor, high: Tensor, low: Tensor, n_tokens: int, competition: Competition
) -> tuple[Tensor, Tensor]:
    """Value and number of pairs of each tile [tiles, 2], and the gradient [n, d], both float32."""
    n, d = high.shape
    t = torch.as_tensor(competition.threshold, dtype=torch.float32, device=high.device).reshape(1)
    grad = torch.zeros(n, d, dtype=torch.float32, device=high.device)
    found = []
    for start in range(0, n, PANEL):
        rows, columns = min(PANEL, n - start), n - start
        tiles = rows // BLOCK, columns // BLOCK
        s_high, s_low = (torch.empty(rows, columns, dtype=torch.float16, device=high.device) for _ in range(2))
        parts = torch.empty(*tiles, dtype=torch.int32, device=high.device)
        sums = torch.empty(*tiles, 2, dtype=torch.float32, device=high.device)
        grid, into = tiles[::-1], (s_high, s_low, parts, sums)
        tile = dict(BLOCK=BLOCK, DEPTH=DEPTH, num_warps=8, num_stages=3)
        launch(
            _weigh, grid, ones, n_active, t, competition.tau, n_tokens, start, *into, ones.shape[1], columns,
            OVERLAP=OVERLAPS.index(competition.overlap), LINEAR=competition.form == "linear", **tile,
        )  # fmt: skip
        launch(_sign, grid, high, low, start, *into, d, columns, **tile | dict(DEPTH=DEPTH // 2))
        found.append(sums.reshape(-1, 2))
        _gradient(s_high, s_low, parts, high[start:], low[start:], grad[start : start + rows], (columns, 1))
        panel = slice(start, start + rows)
        _gradient(s_high, s_low, parts.T, high[panel], low[panel], grad[start:], (1, columns))
    return torch.cat(found), grad


def _gradient(
    s_high: Tensor, s_low: Tensor, parts: Tensor, high: Tensor, low: Tensor, grad: Tensor, strides: tuple[int, int]
) -> None:
    """grad += s W, with the strides of s; parts [row tiles, column tiles]: how many parts of s are not 0."""
    tiles = parts.argsort(dim=1, descending=True, stable=True).int().contiguous()  # those with two parts come first
    d = high.shape[1]
    for s, at_least in ((s_high, 1), (s_low, 2)):
        n_tiles = (parts >= at_least).sum(1, dtype=torch.int32)
        launch(
            _add_products, (d // BLOCK, len(parts)), s, tiles, n_tiles, high, low, grad, parts.shape[1], d, *strides,
            BOTH=at_least == 1, BLOCK=BLOCK, DEPTH=DEPTH, num_warps=8, num_stages=3,
        )  # fmt: skip


def compile_for(shape: StepShape) -> None:
    """Compile each kernel as a step of this shape launches it."""
    W = shape.meta(shape.d_sae, shape.d_in)
    numbers = shape.meta(shape.batch, shape.k, dtype=torch.int64)
    f = TopKFeatures(shape.meta(shape.batch, shape.k), numbers, shape.d_sae)
    for overlap, form in (("jaccard", "linear"), ("cosine", "sigmoid")):
        by_tiles(W, f, shape.batch, Competition(overlap, form, W[0, 0], 0.1))


@triton.jit
def _weigh(
    ones_ptr, n_ptr, t_ptr, tau, n_tokens, start, s_high_ptr, s_low_ptr, parts_ptr, sums_ptr, n_padded, columns,
    OVERLAP: tl.constexpr, LINEAR: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """c_ij of a tile in parts, how many parts are not 0, and the number of competing pairs."""
    tile_j, tile_i = tl.program_id(0), tl.program_id(1)
    first_i, first_j = start + tile_i * BLOCK, start + tile_j * BLOCK
    tile = tile_i * (columns // BLOCK) + tile_j
    t = tl.load(t_ptr)
    # features of tile i are active at least as often as those of tile j, each tile's own in falling order
    most_j = tl.load(n_ptr + first_j).to(tl.float32)
    least_i = tl.maximum(tl.load(n_ptr + first_i + BLOCK - 1).to(tl.float32), most_j)
    possible = (tile_j >= tile_i) & (most_j > 0)
    if LINEAR:
        largest = tl.full((), 1, tl.float32)
        if OVERLAP == 0:
            largest = most_j / tl.maximum(least_i, 1)
        if OVERLAP == 2:
            largest = tl.sqrt(most_j / tl.maximum(least_i, 1))
        if OVERLAP == 3:
            largest = most_j / n_tokens
        possible = possible & (largest * (1 + 1e-5) >= t)
    pairs, parts = 0.0, 0
    if possible:
        row, k = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
        base_i, base_j = ones_ptr + first_i.to(tl.int64) * n_padded, ones_ptr + first_j.to(tl.int64) * n_padded
        token_i, token_j = row[:, None] * n_padded + k[None, :], row[None, :] * n_padded + k[:, None]
        n_both = tl.zeros([BLOCK, BLOCK], tl.float32)
        for at in range(0, n_padded, DEPTH):
            n_both = tl.dot(tl.load(base_i + at + token_i), tl.load(base_j + at + token_j), n_both)
        n_i = tl.load(n_ptr + first_i + row).to(tl.float32)[:, None]
        n_j = tl.load(n_ptr + first_j + row).to(tl.float32)[None, :]
        if OVERLAP == 0:
            n = tl.div_rn(n_both, tl.maximum(n_i + n_j - n_both, 1))
        elif OVERLAP == 1:
            n = tl.div_rn(n_both, tl.maximum(tl.minimum(n_i, n_j), 1))
        elif OVERLAP == 2:
            n = tl.div_rn(n_both, tl.sqrt_rn(tl.maximum(n_i * n_j, 1)))
        else:
            n = tl.div_rn(n_both, n_tokens.to(tl.float32))
        if LINEAR:
            c = tl.minimum(tl.maximum((n - t) / t, 0), 1)
        else:
            c = 1 / (1 + tl.exp(-(n - t) / (tau * t)))
        c = tl.where((n_both > 0) & (first_i + row[:, None] < first_j + row[None, :]), c, 0)
        pairs = tl.sum((c > 0).to(tl.float32))
        if pairs > 0:
            high = c.to(tl.float16)
            low = (c - high.to(tl.float32)).to(tl.float16)
            parts = 1 + (tl.max(tl.abs(low.to(tl.float32))) > 0).to(tl.int32)
            corner = (first_i - start).to(tl.int64) * columns + first_j - start
            place = row[:, None] * columns + row[None, :]
            tl.store(s_high_ptr + corner + place, high)
            tl.store(s_low_ptr + corner + place, low)
    tl.store(parts_ptr + tile, parts)
    tl.store(sums_ptr + 2 * tile + 1, pairs)


@triton.jit
def _sign(
    high_ptr, low_ptr, start, s_high_ptr, s_low_ptr, parts_ptr, sums_ptr, d, columns,
    BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Turn a tile of c_ij into c_ij sign(w_i . w_j), and take its sum of c_ij |w_i . w_j|."""
    tile_j, tile_i = tl.program_id(0), tl.program_id(1)
    tile = tile_i * (columns // BLOCK) + tile_j
    value = 0.0
    if tl.load(parts_ptr + tile) > 0:
        row, k = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
        base_i, base_j = (start + tile_i * BLOCK).to(tl.int64) * d, (start + tile_j * BLOCK).to(tl.int64) * d
        dim_i, dim_j = row[:, None] * d + k[None, :], row[None, :] * d + k[:, None]
        cosine = tl.zeros([BLOCK, BLOCK], tl.float32)
        for at in range(0, d, DEPTH):
            high_i, high_j = tl.load(high_ptr + base_i + at + dim_i), tl.load(high_ptr + base_j + at + dim_j)
            cosine = tl.dot(high_i, high_j, cosine)
            cosine = tl.dot(high_i, tl.load(low_ptr + base_j + at + dim_j), cosine)
            cosine = tl.dot(tl.load(low_ptr + base_i + at + dim_i), high_j, cosine)
        corner = (tile_i * BLOCK).to(tl.int64) * columns + tile_j * BLOCK
        place = row[:, None] * columns + row[None, :]
        sign = tl.where(cosine > 0, 1, tl.where(cosine < 0, -1, 0)).to(tl.float16)
        high = tl.load(s_high_ptr + corner + place)
        tl.store(s_high_ptr + corner + place, high * sign)
        value = tl.sum(tl.where(high > 0, high.to(tl.float32) * tl.abs(cosine), 0))
        low = tl.load(s_low_ptr + corner + place)
        tl.store(s_low_ptr + corner + place, low * sign)
        value += tl.sum(tl.where(high > 0, low.to(tl.float32) * tl.abs(cosine), 0))
    tl.store(sums_ptr + 2 * tile, value)


@triton.jit
def _add_products(
    s_ptr, tiles_ptr, n_tiles_ptr, high_ptr, low_ptr, grad_ptr, n_columns, d, stride_i, stride_j,
    BOTH: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of grad += s W over the first of the listed tiles of s, with the high part of W or with both parts."""
    row, column = tl.program_id(1), tl.program_id(0) * BLOCK
    i, j = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    s_at = i[:, None] * stride_i + j[None, :] * stride_j
    w_at = j[:, None] * d + column + i[None, :]
    corner = row.to(tl.int64) * BLOCK
    out_ptr = grad_ptr + corner * d + i[:, None] * d + column + i[None, :]
    s_ptr += corner * stride_i
    total = tl.load(out_ptr)
    steps: tl.constexpr = BLOCK // DEPTH
    for p in range(0, tl.load(n_tiles_ptr + row) * steps):
        first = tl.load(tiles_ptr + row * n_columns + p // steps).to(tl.int64) * BLOCK + (p % steps) * DEPTH
        s = tl.load(s_ptr + first * stride_j + s_at)
        total = tl.dot(s, tl.load(high_ptr + first * d + w_at), total)
        if BOTH:
            total = tl.dot(s, tl.load(low_ptr + first * d + w_at), total)
    tl.store(out_ptr, total)
