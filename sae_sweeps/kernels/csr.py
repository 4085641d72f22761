"""Sparse square matrices from their entries."""

import warnings

import torch
from torch import Tensor

from sae_sweeps.kernels.counts import counts

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def csr(row: Tensor, column: Tensor, values: Tensor, n: int) -> Tensor:
    """CSR [n, n] from entries ordered by row; entries at the same position add up."""
    crow = torch.zeros(n + 1, dtype=torch.int64, device=row.device)
    crow[1:] = counts(row, n).cumsum(0)
    return torch.sparse_csr_tensor(crow, column, values, (n, n), check_invariants=False)
