"""What a step does with its gradients: out with the decoder's parallel part, norm, clipping, Adam, rows to unit norm.

Two ways with the same numbers but for rounding, and the same state. Both skip parameters without a gradient.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.base import SAE
from sae_sweeps.kernels import memory
from sae_sweeps.kernels.choose import loops

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

    def norm(self) -> Tensor:
        """Take from W_dec's gradient its part along each row; the norm of all gradients then, scalar."""
        ...

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        """Update all parameters by gradients / divisor; nothing where `skip` is given and true. Both are scalars."""
        ...


def optimizer(sae: SAE, parameters: list[nn.Parameter], betas: tuple[float, float]) -> Optimizer:
    return (FusedAdam if loops(sae.kernels, sae.W_dec) else TorchAdam)(sae, parameters, betas)


class TorchAdam:
    """The operations one by one, Adam as torch has it."""

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

    def norm(self) -> Tensor:
        self.sae.remove_parallel_gradient()
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        self.adam.param_groups[0]["lr"] = lr
        in_float32 = divisor.dtype == torch.float32
        # what fused Adam divides gradients by on its way
        self.adam.grad_scale = divisor if in_float32 else None  # type: ignore[attr-defined]
        if not in_float32:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= divisor
        self.adam.found_inf = None if skip is None else skip.float()  # type: ignore[attr-defined]
        self.adam.step()
        self.sae.normalize_decoder()


class FusedAdam:
    """Everything in two visits to each number, for a CPU. It imports none of torch.optim, which takes seconds."""

    def __init__(self, sae: SAE, parameters: list[nn.Parameter], betas: tuple[float, float]):
        from sae_sweeps.kernels import adam_numba

        self.kernels = adam_numba
        self.sae, self.parameters, self.betas = sae, parameters, betas
        self.state, self.lr = _fresh(parameters), 0.0
        # an architecture with a way of its own with the decoder's rows is asked for it
        own = (type(sae).remove_parallel_gradient, type(sae).normalize_decoder)
        self.fused = own == (SAE.remove_parallel_gradient, SAE.normalize_decoder)
        self.dots: Tensor | None = None
        """W_dec's gradient times W_dec, row by row [d_sae]: the part that `step` takes away."""

    def zero_grad(self) -> None:
        for weight in (self.sae.W_enc, self.sae.W_dec):
            if weight.grad is not None:
                memory.give_back(_by_memory(weight.grad, weight))
        for parameter in self.parameters:
            parameter.grad = None

    def norm(self) -> Tensor:
        if not self.fused:
            self.sae.remove_parallel_gradient()
        total = 0.0
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            grad = _by_memory(parameter.grad, parameter).contiguous()
            if self.fused and parameter is self.sae.W_dec:
                self.dots, square = self.kernels.parallel(grad, parameter.detach())
            else:
                square = self.kernels.square_sum(grad)
            total += square
        return torch.tensor(math.sqrt(total), dtype=self.sae.W_dec.dtype)

    def step(self, lr: float, divisor: Tensor, skip: Tensor | None) -> None:
        if skip is not None and bool(skip):
            return
        self.lr = lr
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            state["step"] += 1
            beta1, beta2, n = *self.betas, float(state["step"])
            size, root = self.lr / (1 - beta1**n), (1 - beta2**n) ** -0.5
            rates = [1 / float(divisor), 1 - beta1, beta2, 1 - beta2, size, root, EPS]
            m, v, w = (_by_memory(t, parameter) for t in (state["exp_avg"], state["exp_avg_sq"], parameter))
            grad = _by_memory(parameter.grad, parameter).contiguous()
            if self.fused and parameter is self.sae.W_dec:
                assert self.dots is not None
                self.kernels.adam_on_unit_rows(grad, self.dots, rates, m, v, w)
            else:
                self.kernels.adam(grad, rates, m, v, w)
        if not self.fused:
            self.sae.normalize_decoder()
        self.zero_grad()  # so that siblings can use the memory


def _fresh(parameters: list[nn.Parameter]) -> State:
    return {
        parameter: {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False),
        }
        for parameter in parameters
    }


def _by_memory(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """The tensor with its axes in the order in which the parameter's lie in memory: W_enc is stored by feature."""
    return tensor.detach().permute(sorted(range(parameter.dim()), key=parameter.stride, reverse=True))
