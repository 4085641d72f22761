"""Encoder and decoder on the active pairs of a batch alone, differentiable.

    values   z at the pairs; z = (x - b_dec) W_enc + b_enc             gradient on W_enc, b_enc, b_dec
    x_hat    sum over a token's pairs of value * w_i                   gradient on the values and W_dec
    error    x - b_dec - x_hat, and its squares summed per token: the gradient of a loss of these sums needs only the
             error and its products with rows of W_dec, computed while they are in the cache

Only z itself is a dense product. The gradients are sums over the active pairs, without a temporary of [B, d_sae] or
[B, k, d_in].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae_sweeps.kernels import memory
from sae_sweeps.kernels.choose import asynchronous
from sae_sweeps.kernels.pairs import Link, Pairs
from sae_sweeps.kernels.rounded import at_hand, rounded

if TYPE_CHECKING:
    from sae_sweeps.kernels.choose import Kernels


def pre_activations(
    centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """z [B, d_sae] of x - b_dec [B, d_in], differentiable in the weights; the product may be taken in another dtype.

    Outside autocast the next call overwrites the memory of z: use it within the same step.
    """
    z: Tensor = PreActivations.apply(centred, W_enc, b_enc, b_dec, dtype)
    return z


def with_largest(
    kernels: Kernels, k: int, centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`pre_activations`, and the k largest of each row with their indices, both [B, k], without gradients.

    On a GPU z is in the dtype of the product.
    """
    product = _dtype(W_enc, dtype)
    if product != W_enc.dtype and not asynchronous(W_enc):
        z = pre_activations(centred, W_enc, b_enc, b_dec, dtype)
        return z, *kernels.largest(z.detach(), k)
    z, values, indices = WithLargest.apply(centred, W_enc, b_enc, b_dec, kernels, k, product)
    return z, values, indices


def chosen(z_P: Tensor, pairs: Pairs, centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """z_P [P] itself, differentiable in the weights through these pairs alone."""
    values: Tensor = Chosen.apply(z_P.detach(), pairs, centred, W_enc, b_enc, b_dec)
    return values


def decode(pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
    """sum over each token's pairs of value * W[feature] [B, d], differentiable in values [P] and W [d_sae, d]."""
    x_hat: Tensor = Decode.apply(pairs, values, W)
    return x_hat


def residual(pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Error x - b - decode(...) [B, d] and the sums of its squares [B], differentiable in values [P], W and b [d]."""
    error, squares = Residual.apply(pairs, values, W, b, x)
    return error, squares


def prefix_residuals(
    pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor, ends: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """As `residual`, and the squares of the error of each prefix of the features beside: [parts, B].

    Prefix p has the features below ends[p]; the last is d_sae. For pairs in the order of token, then feature.
    """
    error, squares = PrefixResiduals.apply(pairs, values, W, b, x, ends)
    return error, squares


class PreActivations(torch.autograd.Function):
    """The dense backward pass runs only where a loss term uses z itself."""

    @staticmethod
    def forward(
        ctx: Any, centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, dtype: torch.dtype | None
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc)
        ctx.dtype = _dtype(W_enc, dtype)
        if ctx.dtype != W_enc.dtype:
            return torch.addmm(*(t.to(ctx.dtype) for t in (b_enc, centred, W_enc))).to(W_enc.dtype)
        return torch.addmm(b_enc, centred, W_enc, out=_kept(len(centred), W_enc))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        on_b_enc = grads[0].sum(0, dtype=W_enc.dtype)
        on_W_enc = (grads[0].T.to(ctx.dtype) @ centred.to(ctx.dtype)).T.to(W_enc.dtype)
        return None, on_W_enc, on_b_enc, -(W_enc @ on_b_enc), None


class WithLargest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor, kernels: Kernels, k: int,
        product: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(centred, W_enc)
        ctx.dtype = product
        if product == W_enc.dtype:
            z = _kept(len(centred), W_enc)
            values, indices = kernels.product_and_largest(centred, W_enc, b_enc, k, z)
        else:
            z = torch.addmm(b_enc.to(product), centred.to(product), rounded(W_enc, product))
            values, indices = kernels.largest(z, k)
            values = values.to(W_enc.dtype)
        ctx.mark_non_differentiable(values, indices)
        ctx.set_materialize_grads(False)
        return z, values, indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if grads[0] is None:
            return (None,) * 7
        return *PreActivations.backward(ctx, grads[0]), None, None


class Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_P: Tensor, pairs: Pairs, centred: Tensor, W_enc: Tensor, b_enc: Tensor, b_dec: Tensor
    ) -> Tensor:
        ctx.pairs, ctx.link = pairs, Link()
        pairs.encoder = ctx.link
        ctx.save_for_backward(centred, W_enc)
        ctx.set_materialize_grads(False)
        return z_P.view_as(z_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        kernels, pairs, (on_values,), add = ctx.pairs.kernels, ctx.pairs, grads, ctx.link.take()
        if on_values is None and add is None:
            return (None,) * 6
        if on_values is None:
            on_b_enc, on_W_enc = W_enc.new_zeros(pairs.n_features), torch.zeros_like(W_enc.T).T
        else:
            on_b_enc = kernels.sums(pairs, on_values)
            on_W_enc = kernels.weight_gradient(pairs, on_values, centred).T  # W_enc is stored by feature
        if add is not None:
            add(on_W_enc, on_b_enc)
        return None, None, None, on_W_enc, on_b_enc, -kernels.combination(on_b_enc, at_hand(W_enc, pairs.products).T)


class Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, values: Tensor, W: Tensor) -> Tensor:
        ctx.pairs = pairs
        ctx.save_for_backward(values, W)
        return pairs.kernels.decode(pairs, values, W)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, W = ctx.saved_tensors
        kernels, pairs, g = ctx.pairs.kernels, ctx.pairs, grads[0]
        on_values = kernels.dots(pairs, W, g) if ctx.needs_input_grad[1] else None
        return None, on_values, kernels.weight_gradient(pairs, values, g) if ctx.needs_input_grad[2] else None


class Residual(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        error, squares, dots = pairs.kernels.residual(pairs, values, W, b, x)
        ctx.pairs, ctx.link = pairs, Link()
        pairs.decoder = ctx.link
        ctx.save_for_backward(values, W, error, dots)
        ctx.set_materialize_grads(False)
        return error, squares

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        values, W, error, dots = ctx.saved_tensors
        pairs, kernels, (on_error, on_squares), add = ctx.pairs, ctx.pairs.kernels, grads, ctx.link.take()
        on_values = on_W = on_b = None
        if on_error is None and on_squares is not None:
            each = -2 * on_squares  # gradient on x_hat, in multiples of each token's error
            alike = on_squares.stride() == (0,)  # the gradient of a mean is one number, expanded
            each_P = each[:1] if alike else each[pairs.token]
            on_values, on_b = each_P * dots, kernels.combination(each, error)
            on_W = kernels.weight_gradient(pairs, each_P * values, error)
        elif on_error is not None:
            g = -on_error if on_squares is None else -on_error - 2 * on_squares[:, None] * error
            on_values, on_b = kernels.dots(pairs, W, g), g.sum(0)
            on_W = kernels.weight_gradient(pairs, values, g)
        if add is not None:
            on_W = torch.zeros_like(W) if on_W is None else on_W
            add(on_W)
        return None, on_values, on_W, on_b, None


class PrefixResiduals(torch.autograd.Function):
    """Each pair is multiplied once: by its row of W in the forward pass, by the prefixes' errors together backward."""

    @staticmethod
    def forward(
        ctx: Any, pairs: Pairs, values: Tensor, W: Tensor, b: Tensor, x: Tensor, ends: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        ctx.parts, ctx.link = pairs.by_part(ends), Link()
        pairs.decoder = ctx.link
        errors = pairs.kernels.decode(ctx.parts, values, W).view(len(x), len(ends), -1)
        torch.cumsum(errors, 1, out=errors).neg_().add_((x - b)[:, None])
        ctx.save_for_backward(values, W, errors)
        ctx.set_materialize_grads(False)
        return errors[:, -1].clone(), errors.square().sum(2).T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        values, W, errors = ctx.saved_tensors
        (on_error, on_squares), add, parts = grads, ctx.link.take(), ctx.parts
        on_values = on_W = on_b = None
        if on_error is not None or on_squares is not None:
            # gradient on each prefix's x_hat, then on each part, which is in its prefix and all longer ones
            g = torch.zeros_like(errors) if on_squares is None else errors * (-2 * on_squares.T[:, :, None])
            if on_error is not None:
                g[:, -1] -= on_error
            for part in reversed(range(g.shape[1] - 1)):
                g[:, part] += g[:, part + 1]
            on_b, g = g[:, 0].sum(0), g.flatten(0, 1)
            on_values, on_W = parts.kernels.dots(parts, W, g), parts.kernels.weight_gradient(parts, values, g)
        if add is not None:
            on_W = torch.zeros_like(W) if on_W is None else on_W
            add(on_W)
        return None, on_values, on_W, on_b, None, None


def _dtype(W_enc: Tensor, requested: torch.dtype | None) -> torch.dtype:
    """Dtype of the encoder's product."""
    device = W_enc.device.type
    return requested or (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W_enc.dtype)


def _kept(n_tokens: int, W_enc: Tensor) -> Tensor:
    """Buffer for z [B, d_sae], the same at every call: fresh pages would cost as much as half the product."""
    return memory.kept("z", (n_tokens, W_enc.shape[1]), W_enc.dtype, W_enc.device)
