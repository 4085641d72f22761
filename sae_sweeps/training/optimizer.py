"""The update of a step: decoder gradient projected, its norm, clipping, Adam, decoder rows back to unit norm.

`TorchAdam` uses torch's operations, `FusedAdam` compiled loops on a CPU, `TritonAdam` kernels on a GPU. They give the
same numbers but for rounding, keep the same state and skip parameters without a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import SAE
from sae_sweeps.kernels import memory, rounded, sparse_reference
from sae_sweeps.kernels.choose import loops, name
from sae_sweeps.training.nonfinite_guard import Snapshot

EPS = 1e-8

State = dict[Tensor, dict[str, Tensor]]


class Optimizer(Protocol):
    state: State
    """Adam's, under torch's names, of every parameter from the start."""

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        ...

    def zero_grad(self) -> None: ...

    def project_gradients(self) -> Tensor:
        """Remove from W_dec's gradient its part along each row; return the norm of all gradients then, scalar.

        Once per backward pass, before `step`, which may do the subtraction: do not read W_dec's gradient in between.
        """
        ...

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        """Update all parameters by gradients / divisor; nothing where `skip` is given and true. Both are scalars."""
        ...


def optimizer(
    sae: SAE, parameters: list[nn.Parameter], betas: tuple[float, float], keep_rounded: bool = False
) -> Optimizer:
    """keep_rounded: nothing but the optimizer and torch's own operations writes weights (`kernels/rounded.py`)."""
    if loops(sae.kernels, sae.W_dec):
        return FusedAdam(sae, parameters, betas)
    on_gpu = name(sae.kernels) == "triton" and sae.W_dec.is_cuda and len({p.dtype for p in parameters}) == 1
    return TritonAdam(sae, parameters, betas, keep_rounded) if on_gpu else TorchAdam(sae, parameters, betas)


class TorchAdam:
    """Torch's own Adam, and the operations around it one by one."""

    def __init__(self, sae: SAE, parameters: list[nn.Parameter], betas: tuple[float, float]):
        self.sae, self.parameters = sae, parameters
        self.adam = torch.optim.Adam(parameters, betas=betas, eps=EPS, fused=True)
        self.state = _fresh(parameters)
        self.adam.state = self.state  # type: ignore[assignment]  # torch makes it at the first step

    @property
    def lr(self) -> float:
        return self.adam.param_groups[0]["lr"]

    def zero_grad(self) -> None:
        self.adam.zero_grad(set_to_none=True)

    def project_gradients(self) -> Tensor:
        self.sae.remove_parallel_gradient()
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        self.adam.param_groups[0]["lr"] = lr
        in_float32 = divisor.dtype == torch.float32
        # fused Adam divides the gradients by grad_scale itself
        self.adam.grad_scale = divisor if in_float32 else None  # type: ignore[attr-defined]
        if not in_float32:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= divisor
        self.adam.found_inf = None if skip is None else skip.float()  # type: ignore[attr-defined]
        self.adam.step()
        _normalize(self.sae, skip)


class FusedAdam:
    """For a CPU: two passes over each parameter (`kernels/adam_numba.py`), and no import of torch.optim (seconds)."""

    def __init__(self, sae: SAE, parameters: list[nn.Parameter], betas: tuple[float, float]):
        from sae_sweeps.kernels import adam_numba

        self.kernels = adam_numba
        self.sae, self.parameters, self.betas = sae, parameters, betas
        self.state, self.lr = _fresh(parameters), 0.0
        self.fused = _unit_rows(sae)
        self.dots: Tensor | None = None
        """Length of W_dec's gradient along each row of W_dec [d_sae]: the part that `step` subtracts."""

    def zero_grad(self) -> None:
        for weight in (self.sae.W_enc, self.sae.W_dec):
            if weight.grad is not None:
                memory.release(_by_memory(weight.grad, weight))
        for parameter in self.parameters:
            parameter.grad = None

    def project_gradients(self) -> Tensor:
        if not self.fused:
            self.sae.remove_parallel_gradient()
        total = 0.0
        for parameter, grad in _gradients(self.parameters):
            if self.fused and parameter is self.sae.W_dec:
                self.dots, square_sum = self.kernels.parallel(grad, parameter.detach())
            else:
                square_sum = self.kernels.square_sum(grad)
            total += square_sum
        return torch.tensor(math.sqrt(total), dtype=self.sae.W_dec.dtype)

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        if skip is not None and bool(skip):
            return
        self.lr = lr
        for parameter, grad in _gradients(self.parameters):
            state = self.state[parameter]
            state["step"] += 1
            beta1, beta2, n = *self.betas, float(state["step"])
            size, root = self.lr / (1 - beta1**n), (1 - beta2**n) ** -0.5
            rates = [1 / float(divisor), 1 - beta1, beta2, 1 - beta2, size, root, EPS]
            m, v, w = (_by_memory(t, parameter) for t in (state["exp_avg"], state["exp_avg_sq"], parameter))
            if self.fused and parameter is self.sae.W_dec:
                assert self.dots is not None
                self.kernels.adam_on_unit_rows(grad, self.dots, rates, m, v, w)
            else:
                self.kernels.adam(grad, rates, m, v, w)
        if not self.fused:
            self.sae.normalize_decoder()
        self.zero_grad()  # so that other runs of the process can use the memory


class TritonAdam:
    """For a GPU: two passes over each parameter (`kernels/adam_triton.py`), whose numbers stay on the device.

    Gradients of weights may be in the dtype of the dense product that they come from.
    """

    def __init__(
        self, sae: SAE, parameters: list[nn.Parameter], betas: tuple[float, float], keep_rounded: bool = False
    ):
        from sae_sweeps.kernels import adam_triton

        self.kernels, self.sae, self.parameters = adam_triton, sae, parameters
        device, dtype, n = sae.W_dec.device, sae.W_dec.dtype, len(parameters)
        self.state, self.lr = _fresh(parameters), 0.0
        self.steps = torch.zeros(n, device=device)
        for parameter, step in zip(parameters, self.steps, strict=True):
            self.state[parameter]["step"] = step  # a part of `steps`, which one kernel advances
        self.fused = _unit_rows(sae) and sae.W_dec.shape[1] <= adam_triton.LONGEST
        self.constants = torch.tensor([*betas, EPS], dtype=torch.float64, device=device)
        self.rates = torch.zeros(n, adam_triton.N_RATES, dtype=torch.float64, device=device)
        self.never = torch.zeros((), dtype=torch.bool, device=device)
        self.dots = torch.zeros(sae.d_sae, dtype=dtype, device=device)
        """Length of W_dec's gradient along each row of W_dec: the part that `step` subtracts."""
        self.moving: dict[tuple[bool, ...], Tensor] = {}
        """Which parameters have a gradient -> the same on the device."""
        for weight in (sae.W_enc, sae.W_dec) if keep_rounded and dtype == torch.float32 else ():
            rounded.keep(weight)
            weight.grad_dtype = None  # any

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def project_gradients(self) -> Tensor:
        if not self.fused:
            self.sae.remove_parallel_gradient()
        found = list(_gradients(self.parameters))
        rows = [self.fused and parameter is self.sae.W_dec for parameter, _ in found]
        sizes = [self.kernels.n_parts(grad, unit) for (_, grad), unit in zip(found, rows, strict=True)]
        sums = self.sae.W_dec.new_zeros(sum(sizes))
        for (parameter, grad), unit, parts in zip(found, rows, sums.split(sizes), strict=True):
            self.kernels.square_sums(grad, parts, *((parameter.detach(), self.dots) if unit else ()))
        return sums.sum().sqrt()

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        self.lr = lr
        skip = self.never if skip is None else skip
        moves = self._moves()
        self.kernels.rates(lr, self.constants, divisor, skip, moves, self.steps, self.rates)
        rates = dict(zip(self.parameters, self.rates, strict=True))
        for parameter, grad in _gradients(self.parameters):
            state = self.state[parameter]
            m, v, w = (_by_memory(t, parameter) for t in (state["exp_avg"], state["exp_avg_sq"], parameter))
            unit = self.fused and parameter is self.sae.W_dec
            copy = rounded.to_write(parameter)
            copy = None if copy is None else _by_memory(copy, parameter)
            self.kernels.adam(grad, m, v, w, rates[parameter], skip, self.dots if unit else None, copy)
            rounded.written(parameter)
        if not self.fused:
            _normalize(self.sae, skip)

    def _moves(self) -> Tensor:
        moving = tuple(parameter.grad is not None for parameter in self.parameters)
        if moving not in self.moving:
            self.moving[moving] = torch.zeros(len(moving), dtype=torch.uint8, device=self.steps.device)
            for i in (i for i, moves in enumerate(moving) if moves):
                self.moving[moving][i : i + 1].fill_(1)  # no copy from the host, which would wait
        return self.moving[moving]


def _normalize(sae: SAE, skip: Tensor | None) -> None:
    """What the architecture does with W_dec's rows after a step; nothing where `skip` is given and true."""
    if skip is None:
        sae.normalize_decoder()
    elif type(sae).normalize_decoder is SAE.normalize_decoder:
        sparse_reference.normalize(sae.W_dec.detach(), skip)
    else:
        before = Snapshot({"W_dec": sae.W_dec.detach()})
        sae.normalize_decoder()
        before.restore({"W_dec": sae.W_dec.detach()}, skip)


def _unit_rows(sae: SAE) -> bool:
    """Whether W_dec's rows are treated as `SAE` does; where an architecture has its own way, its methods are called."""
    own = (type(sae).remove_parallel_gradient, type(sae).normalize_decoder)
    return own == (SAE.remove_parallel_gradient, SAE.normalize_decoder)


def _gradients(parameters: list[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter that has a gradient, with that gradient, contiguous in the order of the parameter's memory."""
    for parameter in parameters:
        if parameter.grad is not None:
            yield parameter, _by_memory(parameter.grad, parameter).contiguous()


def _fresh(parameters: list[nn.Parameter]) -> State:
    """Adam's state before the first step."""
    return {
        parameter: {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False),
        }
        for parameter in parameters
    }


def _by_memory(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """The tensor with its axes in the parameter's order in memory: W_enc is stored by feature."""
    return tensor.detach().permute(sorted(range(parameter.dim()), key=parameter.stride, reverse=True))
