"""How far rounding may take two computations of one expression from each other, from the terms of the expression.

A sum of n terms that is rounded at each step, in whatever order, is off by at most gamma_n * sum |terms|, with
gamma_n = n u / (1 - n u) and u the unit roundoff; a dot product of n terms by at most gamma_n * sum |x| |y| (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., 2002, sections 3.1, 3.5 and 4.2). The bound therefore holds on
every processor, with any width of vectors, with or without fused multiply-add, with any number of threads, and it
grows where terms cancel. `Rounding` adds these bounds up along a computation (running error analysis, section 3.3).
"""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def gamma(n: int, dtype: torch.dtype = torch.float64) -> float:
    """n u / (1 - n u): the relative error of n roundings in a row."""
    nu = n * unit_roundoff(dtype)
    assert nu < 1, f"{n} roundings in {dtype} leave no digit"
    return nu / (1 - nu)


def in_float64(value) -> Tensor:
    return (value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)).double().cpu()


def assert_within(found, expected, bound, name: str = "", terms: float = 0.0) -> None:
    """Each |found - expected| is at most its bound, and the bounds are small enough for a wrong formula to fail.

    The largest bound has to be below a hundredth of the largest number compared, unless all are 0, or of `terms` where
    terms of that size cancel to nothing.
    """
    found, expected, bound = (in_float64(value) for value in (found, expected, bound))
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    if not found.numel():
        return
    bound = bound.expand(expected.shape)
    assert bound.isfinite().all(), f"{name}: the bound is not finite"
    scale = max(float(found.abs().max()), float(expected.abs().max()), terms)
    assert bound.max() <= scale / 100 or scale <= bound.max() < 1e-30, (
        f"{name}: a bound of {bound.max():.2g} proves nothing of numbers of {scale:.2g}"
    )
    wrong = ~((found - expected).abs() <= bound)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} are off by more than their bound; at {where}: "
            f"{found[where]:.17g}, expected {expected[where]:.17g}, bound {bound[where]:.3g}"
        )


def close(found, expected, n: int, dtype: torch.dtype = torch.float64, magnitude=None, name="", terms=0.0) -> None:
    """Equal but for n roundings of terms whose absolute values add up to `magnitude` (|expected| if none cancel)."""
    expected = in_float64(expected)
    magnitude = expected.abs() if magnitude is None else in_float64(magnitude)
    assert_within(found, expected, gamma(n, dtype) * magnitude, name, terms)


def product_bound(a: Tensor, b: Tensor, dtype: torch.dtype, more: int = 0) -> Tensor:
    """Of the elements of a @ b, each followed by or made of `more` further roundings: gamma_n |a| @ |b|."""
    return gamma(a.shape[-1] + more, dtype) * (a.detach().double().abs() @ b.detach().double().abs())


class Rounding(TorchDispatchMode):
    """Follows the operations of a computation and holds a bound on the rounding error of every tensor they make.

    Tensors from outside are exact. An operation passes on the errors of its arguments by its derivative and adds its
    own: gamma_n |value| for n roundings, gamma_n sum |terms| for sums and products of matrices. With `precision` each
    operation is taken to round in that dtype, whatever the dtype of its tensors: a reference in float64 so bounds a
    kernel of the same expression in float32. Backward passes are followed too. Comparisons, `topk` and masks are taken
    to come out as without rounding: the inputs of a test have to keep clear of ties. NumPy and compiled loops are not
    seen.
    """

    def __init__(self, precision: torch.dtype | None = None):
        super().__init__()
        self.precision = precision
        self.errors: dict[int, tuple[Tensor, Tensor]] = {}

    def bound(self, tensor: Tensor) -> Tensor:
        """Of each element of a tensor, in float64."""
        return self._error(tensor.detach()).clone()

    def assert_close(self, found, expected: Tensor, factor: float = 1, name: str = "", terms: float = 0.0) -> None:
        """`found`, computed elsewhere, equals `expected`, computed under this mode. Both have rounded: factor=2."""
        assert_within(found, expected, factor * self.bound(expected), name, terms)

    def _error(self, tensor: Tensor) -> Tensor:
        """The errors of a tensor, a view of those of its storage, so that views and changes in place keep them."""
        if tensor.layout != torch.strided:  # a sparse matrix has errors as a dense one
            if id(tensor) not in self.errors:
                self.errors[id(tensor)] = (tensor, torch.zeros(tensor.shape, dtype=torch.float64))
            return self.errors[id(tensor)][1]
        storage = tensor.untyped_storage()
        if storage._cdata not in self.errors:
            n = storage.nbytes() // tensor.element_size()
            self.errors[storage._cdata] = (tensor, torch.zeros(n, dtype=torch.float64))  # kept alive with its address
        whole = self.errors[storage._cdata][1]
        return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        in_place = name.endswith("_") and not name.endswith("__")
        old = [_Number(self, a) for a in args]  # before a change in place
        into = "out" in kwargs  # as good as in place: the rule is that of the operation itself
        out = function(*args, **kwargs)
        results = [r for r in (out if isinstance(out, tuple | list) else [out]) if isinstance(r, Tensor)]
        if not any(r.is_floating_point() for r in results):
            return out
        if name == "values":  # of a sparse matrix
            self._error(out).copy_(old[0].error[_places_of(args[0])])
            return out
        addresses = {a.untyped_storage()._cdata for a in args if isinstance(a, Tensor) and a.layout == torch.strided}
        view = name in ("squeeze_", "unsqueeze_", "t_", "transpose_", "detach_")
        if view or (
            not (in_place or into)
            and results[0].layout == torch.strided
            and results[0].untyped_storage()._cdata in addresses
        ):
            return out
        rule = RULES.get(name.rstrip("_") if in_place else name)
        if rule is None:
            raise NotImplementedError(f"tests/bounds.py has no rule for {function}")
        result = results[0]
        u = gamma(1, self.precision or result.dtype)
        value = result.detach().to_dense().double()
        error = rule(_Operation(function, old, kwargs, out, value, self.precision or result.dtype, u))
        self._error(result).copy_(torch.where(value.isfinite(), error, 0.0))  # -inf stands for a masked place
        return out


def _places_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries of a sparse matrix by rows."""
    start = matrix.crow_indices()
    return torch.repeat_interleave(torch.arange(len(start) - 1), start.diff()), matrix.col_indices()


class _Number:
    """An argument: value and absolute value in float64, and its errors; other arguments pass as they are."""

    def __init__(self, mode: Rounding, argument):
        self.raw = argument
        if isinstance(argument, Tensor) and argument.is_floating_point():
            where = argument if argument.layout != torch.strided else argument.detach()
            self.value, self.error = argument.detach().to_dense().double().clone(), mode._error(where).clone()
        elif isinstance(argument, Tensor):
            self.value, self.error = argument.detach().double(), torch.zeros(argument.shape, dtype=torch.float64)
        elif isinstance(argument, list | tuple) and argument and isinstance(argument[0], Tensor):
            self.several = [_Number(mode, a) for a in argument]
        else:
            self.value, self.error = argument, 0.0

    @property
    def size(self):
        return abs(self.value)

    @property
    def top(self):
        """The largest that the value can be in size."""
        return abs(self.value) + self.error


class _Operation:
    def __init__(self, function, args, kwargs, out, value, dtype, u):
        self.function, self.args, self.kwargs, self.out, self.value = function, args, kwargs, out, value
        self.dtype, self.u = dtype, u
        self.name = function.overloadpacket.__name__.rstrip("_")
        self.tiny = torch.finfo(dtype).tiny

    def own(self, n: int, magnitude) -> Tensor:
        """The error of n roundings, or of an underflow."""
        return gamma(n, self.dtype) * magnitude + n * self.tiny * self.u

    def rounded(self, error, n: int = 1) -> Tensor:
        return error + self.own(n, self.value.abs() + error)

    def raw(self, of) -> tuple:
        return [of(a) if isinstance(a.raw, Tensor) and a.raw.is_floating_point() else a.raw for a in self.args]


def _same(op: _Operation) -> Tensor:
    """Elements change their places only: so do their errors."""
    args = []
    for a in op.args:
        if hasattr(a, "several"):
            floating = a.several[0].raw.is_floating_point()
            args.append([s.error if floating else s.raw for s in a.several])
        elif isinstance(a.raw, Tensor) and a.raw.is_floating_point():
            args.append(a.error.reshape(a.raw.shape))
        else:
            args.append(a.raw)
    if isinstance(args[-1], int | float) and op.name in ("fill", "index_fill", "masked_fill", "scatter"):
        args[-1] = 0.0
    packet = op.function.overloadpacket
    result = packet(*args, **{k: v for k, v in op.kwargs.items() if k != "dtype"})
    return result[0] if isinstance(result, tuple | list) else result


def _own(op: _Operation) -> Tensor:
    return op.args[0].error


def _exact(op: _Operation) -> Tensor:
    return torch.zeros_like(op.value)


def _copied(op: _Operation) -> Tensor:
    """A change of dtype rounds where the new one is coarser."""
    (source,) = [a for a in op.args if isinstance(a.raw, Tensor)][-1:]
    error = torch.as_tensor(source.error).expand(op.value.shape)
    coarser = source.raw.is_floating_point() and unit_roundoff(op.out.dtype) > unit_roundoff(source.raw.dtype)
    return op.rounded(error) if coarser else error


def _add(op: _Operation) -> Tensor:
    alpha = op.kwargs.get("alpha", op.args[2].raw if len(op.args) > 2 else 1)
    return op.rounded(op.args[0].error + abs(alpha) * op.args[1].error, 1 if abs(alpha) == 1 else 2)


def _rsub(op: _Operation) -> Tensor:
    return op.rounded(op.args[0].error + op.args[1].error)


def _mul(op: _Operation) -> Tensor:
    a, b = op.args[:2]
    return op.rounded(a.top * b.top - a.size * b.size)


def _div(op: _Operation) -> Tensor:
    a, b = op.args[:2]
    return op.rounded((a.error + op.value.abs() * b.error) / (b.size - b.error), 2)


def _addcmul(op: _Operation) -> Tensor:
    a, b, c = op.args[:3]
    scale = abs(op.kwargs.get("value", 1))
    return op.rounded(a.error + scale * (b.top * c.top - b.size * c.size), 1) + op.own(2, scale * b.top * c.top)


def _lerp(op: _Operation) -> Tensor:
    a, b, w = op.args[:3]
    return a.error + (b.top + a.top) * w.top - (b.size + a.size) * w.size + op.own(4, a.top + (b.top + a.top) * w.top)


def _matmul(op: _Operation, a: _Number, b: _Number, times=1.0) -> Tensor:
    top = a.top @ b.top
    return abs(times) * (top - a.size @ b.size + op.own(a.value.shape[-1] + (times != 1), top))


def _mm(op: _Operation) -> Tensor:
    return _matmul(op, *op.args[:2])


def _addmm(op: _Operation) -> Tensor:
    start, a, b = op.args[:3]
    beta, alpha = op.kwargs.get("beta", 1), op.kwargs.get("alpha", 1)
    return op.rounded(abs(beta) * start.error + _matmul(op, a, b, alpha), 2)


def _sum_terms(op: _Operation) -> tuple[Tensor, Tensor, int]:
    a = op.args[0]
    dims = op.args[1].raw if len(op.args) > 1 else None
    dims = dims if dims not in (None, []) else list(range(a.value.dim()))
    dims = [dims] if isinstance(dims, int) else dims
    keep = op.args[2].raw if len(op.args) > 2 else op.kwargs.get("keepdim", False)
    n = math.prod(a.value.shape[d] for d in dims)
    if not dims:
        return a.top, a.error, 1
    return a.top.sum(dims, keepdim=keep), a.error.sum(dims, keepdim=keep), n


def _sum(op: _Operation) -> Tensor:
    top, error, n = _sum_terms(op)
    return error + op.own(n, top)


def _mean(op: _Operation) -> Tensor:
    top, error, n = _sum_terms(op)
    return (error + op.own(n + 2, top)) / n


def _cumsum(op: _Operation) -> Tensor:
    a, dim = op.args[0], op.args[1].raw
    return a.error.cumsum(dim) + op.own(a.value.shape[dim] if a.value.dim() else 1, a.top.cumsum(dim))


def _scatter_sum(op: _Operation) -> Tensor:
    """index_add, scatter_add, index_put(accumulate): at most as many terms meet as there are values, and one."""
    packet = op.function.overloadpacket
    top = packet(*op.raw(lambda a: a.top.reshape(a.raw.shape)), **op.kwargs)
    error = packet(*op.raw(lambda a: a.error.reshape(a.raw.shape)), **op.kwargs)
    ones = packet(*op.raw(lambda a: torch.ones(a.raw.shape, dtype=torch.float64)), **op.kwargs)
    return error + op.own(max(int(ones.max()), 1), top)


def _prod(op: _Operation) -> Tensor:
    a, dim = op.args[0], op.args[1].raw
    return op.rounded(a.top.prod(dim) - a.size.prod(dim), a.value.shape[dim])


def _embedding_bag(op: _Operation) -> Tensor:
    """Rows, or gradients of rows, times a weight each, added up: linear in either."""

    def of(part) -> Tensor:
        found = op.function.overloadpacket(*op.raw(part), **op.kwargs)
        return found[0] if isinstance(found, tuple) else found

    top = of(lambda a: a.top)
    return top - of(lambda a: a.size) + op.own(op.args[1].raw.numel() + op.args[0].value.shape[-1], top)


def _index_put(op: _Operation) -> Tensor:
    start, places, values = op.args[:3]
    accumulate = len(op.args) > 3 and op.args[3].raw
    indices = [p if p is None else p.raw for p in places.several] if hasattr(places, "several") else places.raw
    put = lambda a, b: aten.index_put(a, indices, b.reshape(values.raw.shape), bool(accumulate))  # noqa: E731
    error = put(start.error, values.error)
    if not accumulate:
        return error
    meeting = put(torch.ones_like(start.error), torch.ones_like(values.error)).max()
    return error + op.own(int(meeting), put(start.top, values.top))


def _sparse(op: _Operation) -> Tensor:
    """A sparse matrix by rows, made of crow_indices, col_indices and values."""
    error = torch.zeros(op.value.shape, dtype=torch.float64)
    error[_places_of(op.out)] = op.args[2].error
    return error


def _std(op: _Operation) -> Tensor:
    """From the deviations, which have the errors of the elements and of their mean."""
    a = op.args[0]
    dims = op.args[1].raw if len(op.args) > 1 else op.kwargs.get("dim")
    dims = list(range(a.value.dim())) if dims is None else dims
    n = math.prod(a.value.shape[d] for d in dims)
    correction = 1 if op.kwargs.get("correction") is None else op.kwargs["correction"]
    of_mean = (a.error.sum(dims, keepdim=True) + op.own(n, a.top.sum(dims, keepdim=True))) / n
    deviation = a.error + of_mean + op.own(1, a.top + a.value.mean(dims, keepdim=True).abs())
    keep = op.kwargs.get("keepdim", False)
    return op.rounded(torch.linalg.vector_norm(deviation, 2, dims, keep) / (n - correction) ** 0.5, n + 4)


def _sqrt(op: _Operation) -> Tensor:
    a = op.args[0]
    return op.rounded(torch.minimum(a.error / a.value.sqrt().clamp(min=1e-300), a.error.sqrt()), 2)


def _rsqrt(op: _Operation) -> Tensor:
    a = op.args[0]
    return op.rounded(op.value * (0.5 * a.error / a.value) * (1 + a.error / a.value), 4)


def _elementwise(slope, n: int = 4):
    """Of a function of one argument, |f'| error; library functions are within a few units in the last place."""
    return lambda op: op.rounded(slope(op) * op.args[0].error, n)


def _exp(op: _Operation) -> Tensor:
    return op.rounded(op.value * torch.expm1(op.args[0].error), 4)


def _log(op: _Operation) -> Tensor:
    a = op.args[0]
    return op.rounded(-torch.log1p(-(a.error / a.value).clamp(max=0.5)), 4)


def _pow(op: _Operation) -> Tensor:
    base, power = op.args[:2]
    if not isinstance(power.raw, int | float):
        return op.rounded(op.value * base.value.log().abs() * power.error, 8)
    if power.raw == 0:
        return _exact(op)
    slope = (
        abs(power.raw) * base.top ** (power.raw - 1)
        if power.raw >= 1
        else abs(power.raw) * (base.size - base.error) ** (power.raw - 1)
    )
    slope = torch.where(base.error > 0, slope, 0.0)
    return op.rounded(slope * base.error, 2 if power.raw == 2 else 8)


def _norm(op: _Operation) -> Tensor:
    a = op.args[0]
    order = op.args[1].raw if len(op.args) > 1 else 2
    dims = op.args[2].raw if len(op.args) > 2 else None
    keep = bool(op.args[3].raw) if len(op.args) > 3 else op.kwargs.get("keepdim", False)
    assert order == 2
    error = torch.linalg.vector_norm(a.error, 2, dims, keep)
    return op.rounded(error, a.value.numel() // max(op.value.numel(), 1) + 2)


def _masked(keep):
    return lambda op: torch.where(keep(op), op.args[0].error, 0.0)


def _clamp(op: _Operation) -> Tensor:
    return (op.value == op.args[0].value) * op.args[0].error


def _amax(op: _Operation) -> Tensor:
    a = op.args[0]
    dims = op.args[1].raw if len(op.args) > 1 else list(range(a.value.dim()))
    keep = op.args[2].raw if len(op.args) > 2 else op.kwargs.get("keepdim", False)
    return a.error.amax(dims, keepdim=keep)


def _larger(op: _Operation) -> Tensor:
    a, b = op.args[:2]
    return torch.where(op.value == a.value, a.error, b.error)


def _chosen(op: _Operation) -> Tensor:
    """topk, sort, max and min along a dimension: the errors of the chosen elements."""
    a = op.args[0]
    if isinstance(op.out, Tensor):  # the largest of all
        return a.error.max()
    indices = op.out[1]
    if op.name in ("topk", "kthvalue"):
        dim = op.args[2].raw if len(op.args) > 2 else -1
    elif op.function._overloadname == "stable":
        dim = op.kwargs.get("dim", -1)
    else:
        dim = op.args[1].raw if len(op.args) > 1 else -1
    if op.value.dim() < a.error.dim():
        return a.error.gather(dim, indices.unsqueeze(dim)).squeeze(dim)
    return a.error.gather(dim, indices)


def _softmax(op: _Operation) -> Tensor:
    """p = exp(z - max) / sum: the exponents' errors twice, in the numerator and in the sum."""
    z, dim = op.args[0], op.args[1].raw
    n = z.value.shape[dim]
    spread = (z.value.amax(dim, keepdim=True) - z.value).clamp(max=800) * op.u
    error = torch.expm1(z.error + z.error.amax(dim, keepdim=True) + spread)
    return op.rounded(op.value * 2 * error, n + 8)


def _log_softmax(op: _Operation) -> Tensor:
    z, dim = op.args[0], op.args[1].raw
    n = z.value.shape[dim]
    spread = (z.value.amax(dim, keepdim=True) - z.value).nan_to_num(0, 0, 0)
    return op.rounded(z.error + z.error.amax(dim, keepdim=True) + op.own(n + 8, 1 + spread.abs()), 2)


def _softmax_backward(op: _Operation) -> Tensor:
    """p (g - sum g p)."""
    g, p, dim = op.args[0], op.args[1], op.args[2].raw
    inner = (g.top * p.top).sum(dim, keepdim=True)
    exact = (g.size * p.size).sum(dim, keepdim=True)
    return p.top * (g.top + inner) - p.size * (g.size + exact) + op.own(g.value.shape[dim] + 4, p.top * (g.top + inner))


def _log_softmax_backward(op: _Operation) -> Tensor:
    """g - softmax sum g."""
    g, logs, dim = op.args[0], op.args[1], op.args[2].raw
    p = logs.value.exp()
    total = g.value.sum(dim, keepdim=True).abs()
    n = g.value.shape[dim]
    total_error = g.error.sum(dim, keepdim=True) + op.own(n, g.top.sum(dim, keepdim=True))
    p_error = p * torch.expm1(logs.error) + op.own(4, p)
    return op.rounded(g.error + p * total_error + p_error * (total + total_error), 3)


def _logsumexp(op: _Operation) -> Tensor:
    z, dims = op.args[0], op.args[1].raw
    keep = bool(op.args[2].raw) if len(op.args) > 2 else False
    n = math.prod(z.value.shape[d] for d in dims)
    return op.rounded(z.error.amax(dims, keepdim=keep) + op.own(n + 8, torch.ones_like(op.value)), 2)


def _bce_with_logits(op: _Operation) -> Tensor:
    z = op.args[0]
    error = z.error + op.own(8, 1 + z.top)
    reduction = op.args[4].raw if len(op.args) > 4 else 1
    return error.mean() + op.own(z.value.numel(), (1 + z.top).mean()) if reduction == 1 else error


def _sigmoid_backward(op: _Operation) -> Tensor:
    g, s = op.args[:2]
    slope = (1 - 2 * s.value).abs()
    return op.rounded(s.value * (1 - s.value) * g.error + g.top * slope * s.error, 3) + op.own(2, g.top * s.value)


def _tanh_backward(op: _Operation) -> Tensor:
    g, t = op.args[:2]
    return op.rounded((1 - t.value**2) * g.error + 2 * g.top * t.size * t.error, 3) + op.own(2, g.top * t.value**2)


_PLACES = (
    "gather index index_select cat stack clone expand reshape _unsafe_view scatter select_backward slice_backward "
    "where masked_fill tril triu flip roll repeat masked_select index_fill diagonal_backward constant_pad_nd unfold "
    "take_along_dim contiguous diag_embed select_scatter slice_scatter unfold_backward value_selecting_reduction "
    "diagonal_copy alias detach lift_fresh view masked_scatter as_strided_scatter new_empty_strided"
).split()
_CONSTANTS = (
    "zeros ones empty full zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full fill zero "
    "empty_strided arange scalar_tensor sign sgn rand randn rand_like randn_like bernoulli uniform normal eye round "
    "floor new_empty_strided exponential random trunc linspace unique_dim"
).split()
RULES = {
    **dict.fromkeys(_PLACES, _same),
    **dict.fromkeys(_CONSTANTS, _exact),
    **dict.fromkeys(["_to_copy", "copy"], _copied),
    "add": _add, "sub": _add, "rsub": _rsub, "mul": _mul, "div": _div, "addcmul": _addcmul, "lerp": _lerp,
    "mm": _mm, "bmm": _mm, "mv": _mm, "dot": _mm, "addmm": _addmm, "baddbmm": _addmm, "addmv": _addmm,
    "sum": _sum, "mean": _mean, "cumsum": _cumsum, "index_add": _scatter_sum, "scatter_add": _scatter_sum,
    "index_put": _index_put, "_index_put_impl": _index_put, "_unsafe_index_put": _index_put,
    "sparse_sampled_addmm": _addmm, "_sparse_csr_tensor_unsafe": _sparse, "_sparse_compressed_tensor_unsafe": _sparse,
    "sparse_csr_tensor": _sparse, "sparse_compressed_tensor": _sparse, "std": _std, "sqrt": _sqrt,
    "rsqrt": _rsqrt, "exp": _exp, "log": _log, "pow": _pow, "linalg_vector_norm": _norm, "abs": _own, "neg": _own,
    "square": _elementwise(lambda op: 2 * op.args[0].top, 1),
    "reciprocal": _elementwise(lambda op: op.value.abs() / (op.args[0].size - op.args[0].error), 2),
    "sigmoid": _elementwise(lambda op: op.value * (1 - op.value) + op.args[0].error),
    "tanh": _elementwise(lambda op: 1 - op.value**2 + op.args[0].error),
    "log1p": _elementwise(lambda op: 1 / (1 + op.args[0].value - op.args[0].error)),
    "cos": _elementwise(lambda op: 1.0), "sin": _elementwise(lambda op: 1.0),
    "relu": _masked(lambda op: op.args[0].value > 0), "threshold_backward": _masked(lambda op: op.args[1].value > 0),
    "clamp": _clamp, "clamp_min": _clamp, "clamp_max": _clamp, "amax": _amax, "amin": _amax,
    "maximum": _larger, "minimum": _larger, "topk": _chosen, "kthvalue": _chosen,
    "sort": _chosen, "max": _chosen, "min": _chosen,
    "prod": _prod, "_embedding_bag": _embedding_bag, "_embedding_bag_dense_backward": _embedding_bag,
    "_embedding_bag_backward": _embedding_bag,
    "_embedding_bag_per_sample_weights_backward": _embedding_bag,
    "_softmax": _softmax, "_log_softmax": _log_softmax, "logsumexp": _logsumexp,
    "_softmax_backward_data": _softmax_backward, "_log_softmax_backward_data": _log_softmax_backward,
    "sigmoid_backward": _sigmoid_backward, "tanh_backward": _tanh_backward,
    "binary_cross_entropy_with_logits": _bce_with_logits,
}  # fmt: skip
