"""CUDA's rules: which operations make the host wait, which start no kernel, and which tensors may meet."""

from __future__ import annotations

from typing import Any

import torch

aten: Any = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: 1,
    aten.nonzero.default: 1,
    aten.nonzero_numpy.default: 1,
    aten.masked_select.default: 1,
    aten.equal.default: 1,
    aten.bincount.default: 2,  # the least and the largest value
    aten.histc.default: 2,
    aten._unique.default: 1,
    aten._unique2.default: 1,
    aten.unique_dim.default: 1,
    aten.unique_consecutive.default: 1,
    aten.multinomial.default: 1,
    aten._linalg_check_errors.default: 1,
    aten._linalg_eigh.default: 1,
    aten._linalg_svd.default: 1,
    aten._to_sparse.default: 1,
    aten._to_sparse.sparse_dim: 1,
    aten._to_sparse_csr.default: 1,
    aten._to_sparse_csc.default: 1,
    aten._coalesce.default: 1,
}
"""How often the host waits: to read a number, or the size of a result."""

INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
COPIES = {aten.copy_.default, aten._to_copy.default}

SCALARS_MEET = {
    aten.copy_.default,
    aten.fill_.Tensor,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.where.self,
    aten.scatter.value,
    aten._fused_adam_.tensor_lr,
    aten.clamp.Tensor,
}
"""Beside operations by elements, those that accept a scalar tensor of the CPU."""

VIEWS = set(
    "view alias detach t transpose permute expand slice select unsqueeze squeeze as_strided _unsafe_view split "
    "split_with_sizes unbind diagonal _reshape_alias lift_fresh real view_as_real view_as_complex unfold crow_indices "
    "col_indices values indices empty empty_strided new_empty empty_like new_empty_strided is_pinned "
    "_sparse_csr_tensor_unsafe _sparse_compressed_tensor_unsafe".split()
)
"""Views and allocations, which touch no number."""

PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.mv.default, aten.dot.default}


def waits(operation: Any, args: tuple, kwargs: dict[str, Any]) -> int:
    """How often an operation on the device makes the host wait, copies aside."""
    if operation.overloadpacket is aten.repeat_interleave:
        return int(kwargs.get("output_size") is None)
    if operation.overloadpacket is aten.isin:  # above a size it sorts, and looks for what is there
        n, n_among = (a.numel() if isinstance(a, torch.Tensor) else 1 for a in args[:2])
        return 2 * int(n_among >= 10 * max(n, 1) ** 0.145)
    if operation.overloadpacket is aten.normal and isinstance(args[1], torch.Tensor):
        return 1
    if operation in INDEXING:
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        # one mask and one value is masked_fill
        filled = len(args) > 2 and args[2].numel() == 1 and len(args[1]) == 1
        return 0 if filled else len(masks)
    return WAITS.get(operation, 0)


def is_view(operation: Any) -> bool:
    return operation.overloadpacket.__name__ in VIEWS


def starts_kernel(operation: Any) -> bool:
    """Or a copy. A number that is read is neither."""
    return not is_view(operation) and operation is not aten._local_scalar_dense.default


def scalar_may_come_from_cpu(operation: Any) -> bool:
    if torch.Tag.pointwise in operation.tags or operation in SCALARS_MEET:
        return True
    name = operation.overloadpacket.__name__
    return name.startswith("_foreach_") and operation._overloadname == "Tensor"
