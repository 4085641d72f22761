"""Mutual information of pairs of groups from the correlation of their energies, as if jointly Gaussian.

MI_gh = -0.5 log(1 - min(rho_gh^2, 0.9999))

Used by `penalties/bottleneck.py` and the group layer.
"""

import torch
from torch import Tensor

MAX_SQUARED_CORRELATION = 0.9999
TINY = 1e-12
"""Sums of squares up to here count as 0: the gradient of 1 / sqrt of less overflows in float32."""


def standardized(E_NG: Tensor, variance_floor: float, rows_N: Tensor | None = None) -> Tensor:
    """Columns minus their mean, over sqrt(N) standard deviations, so that products are correlations.

    A column whose variance is at most `variance_floor` times the mean square of all of E is 0, and has gradient 0.
    rows_N (bool): the rows taken into account, the others are 0; without it, all.
    """
    if rows_N is None:
        centred = E_NG - E_NG.mean(0)
    else:
        E_NG = torch.where(rows_N[:, None], E_NG, 0)
        centred = (E_NG - E_NG.sum(0) / rows_N.sum()) * rows_N[:, None]
    squares = centred.square().sum(0)
    floor = variance_floor * E_NG.detach().square().mean() * len(E_NG)
    varies = squares.detach() > floor.clamp_min(TINY)
    return centred * torch.where(varies, squares, 1).rsqrt() * varies


def mutual_information(E_NG: Tensor, variance_floor: float, rows_N: Tensor | None = None) -> Tensor:
    """MI_gh in nats [G, G] of energies E_NG over N tokens, or those of rows_N; 0 on the diagonal and for groups that do
    not vary."""
    with torch.autocast(E_NG.device.type, enabled=False):
        unit = standardized(E_NG, variance_floor, rows_N)
        rho = unit.T @ unit
        mi = -0.5 * torch.log1p(-rho.square().clamp(max=MAX_SQUARED_CORRELATION))
        return mi * ~torch.eye(len(mi), dtype=torch.bool, device=mi.device)
