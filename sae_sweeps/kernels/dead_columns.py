"""How well the dead features alone model an error, by products of their columns: no pairs, and no number read.

    f      ReLU(z) at the k largest z of a token among the dead features, 0 elsewhere       [B, d_sae]
    left   error - f W_dec                                                                   [B, d_in]

Where the products are dense they have as many columns as there are dead features, a number that the kernels read on the
device. The weights' gradients are added in place to those of the step's main path, whose rows then pass through memory
once: see `pairs.Link`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from types import ModuleType

    from sae_sweeps.kernels.choose import Kernels
    from sae_sweeps.kernels.features import Features


def masked(z: Tensor, dead: Tensor, k: int) -> Tensor:
    """f [B, d_sae] of z [B, d_sae], differentiable in z; dead [d_sae], bool."""
    values, indices = z.masked_fill(~dead, -torch.inf).topk(min(k, z.shape[1]), dim=1, sorted=False)
    return torch.zeros_like(z).scatter(1, indices, values.relu())


def kernels_for(kernels: Kernels | None, W: Tensor) -> ModuleType | None:
    """Kernels of the products of dead columns beside a run's, for weights W; None: `masked` is to be used."""
    if kernels is None or kernels.NAME != "triton" or W.dtype != torch.float32:
        return None
    from sae_sweeps.kernels import dead_columns_triton

    return dead_columns_triton


def squares_left(
    kernels: ModuleType,
    z: Tensor,
    dead: Tensor,
    k: int,
    error: Tensor,
    centred: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    coarse: bool = False,
    main: Features | None = None,
) -> Tensor:
    """Sums of the squares of what is left [B], differentiable in the weights W_enc, b_enc, b_dec and W_dec.

    Args:
        kernels: `dead_columns_triton`.
        error: [B, d_in]; the dead features are fitted to its value, it gets no gradient.
        centred: x - b_dec [B, d_in].
        coarse: z only selects; values are computed again in the weights' dtype.
        main: the step's features, where their pairs have links that take the weights' gradients.
    """
    pairs = None if main is None else main.pairs
    links = (None, None) if pairs is None else (pairs.encoder, pairs.decoder)
    values = None if main is None else main.values
    squares: Tensor = SquaresLeft.apply(kernels, z.detach(), dead, k, error, centred, *weights, coarse, links, values)
    return squares


class SquaresLeft(torch.autograd.Function):
    """`error` and `values` are inputs for the order of the backward passes alone."""

    @staticmethod
    def forward(
        ctx: Any, kernels: Any, z: Tensor, dead: Tensor, k: int, error: Tensor, centred: Tensor, *rest: Any
    ) -> Tensor:
        W_enc, b_enc, _, W_dec, coarse, links, _ = rest
        device = W_enc.device.type
        ctx.kernels, ctx.links = kernels, links
        ctx.product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W_enc.dtype
        number, n_dead = (~dead).byte().argsort(stable=True), dead.sum(dtype=torch.int32)
        f = kernels.largest(z, number, n_dead, k, ctx.product)
        if coarse:
            f = kernels.dots(centred, W_enc.T, number, n_dead, f, ctx.product, b_enc)
        left = kernels.left(f, number, n_dead, W_dec, error, ctx.product)
        ctx.save_for_backward(f, left, number, n_dead, centred, W_enc, W_dec)
        return left.square().sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        f, left, number, n_dead, centred, W_enc, W_dec = ctx.saved_tensors
        kernels, product = ctx.kernels, ctx.product
        g = left * (-2 * grads[0][:, None])
        on_z = kernels.dots(g, W_dec, number, n_dead, f, product)

        def add_to_encoder(on_W: Tensor, on_b: Tensor) -> None:
            kernels.add_products(on_W.T, on_z, centred, number, n_dead, product, on_b)

        def add_to_decoder(on_W: Tensor) -> None:
            kernels.add_products(on_W, f, g, number, n_dead, product)

        encoder, decoder = ctx.links
        on_W_enc = on_b_enc = on_b_dec = on_W_dec = None
        if encoder is None:
            on_W_enc, on_b_enc = torch.zeros_like(W_enc.T).T, g.new_zeros(len(number))
            add_to_encoder(on_W_enc, on_b_enc)
            on_b_dec = -(W_enc @ on_b_enc)
        else:
            encoder.give(add_to_encoder)
        if decoder is None:
            on_W_dec = torch.zeros_like(W_dec)
            add_to_decoder(on_W_dec)
        else:
            decoder.give(add_to_decoder)
        return *(None,) * 6, on_W_enc, on_b_enc, on_b_dec, on_W_dec, None, None, None
