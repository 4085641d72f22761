"""A tensor that is on cuda:N for everybody and holds a real one of the CPU, which computes its numbers.

Every operation passes `execute`: it refuses what CUDA refuses, logs what CUDA would wait for, and computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from simulated_cuda import rules
from simulated_cuda.log import LOG, DeviceError, place
from simulated_cuda.pinned import is_pinned, pin

aten: Any = torch.ops.aten
CPU = torch.device("cpu")
of_cpu = torch.tensor
"""torch.tensor of the CPU, whatever `runtime` puts in its place."""
CHANGE_SHAPE = {"squeeze_", "unsqueeze_", "t_", "transpose_"}
NOT_SIMULATED = {"set_", "resize_", "resize_as_"}


class SimulatedTensor(Tensor):
    """Args:
    real: its numbers, on the CPU, without a gradient of their own.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> SimulatedTensor:
        how: dict[str, Any] = {"dtype": real.dtype, "layout": real.layout, "device": device, "requires_grad": False}
        if real.layout is torch.strided:
            how |= {"strides": real.stride(), "storage_offset": real.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, real.size(), **how)
        made.held = real
        made.memory = _Memory(real) if real.layout is torch.strided else None
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return execute(operation, args, kwargs or {})

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.held!r} on {self.device}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = SimulatedTensor(self.held.clone(), self.device)
            memo[id(self)] = (
                torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy
            )
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("a tensor of the simulated device is not pickled: move it to the CPU first")

    # These are written in C++ below what an operation passes
    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy; use Tensor.cpu() first, at {place()}"
        )

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return of_cpu(data, dtype=kwargs.get("dtype", self.dtype)).to(kwargs.get("device", self.device))

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_lists_on(self.device, index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_lists_on(self.device, index), value)


def _lists_on(device: torch.device, index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_lists_on(device, one) for one in index)
    return of_cpu(index).to(device) if isinstance(index, list) else index


class _Memory:
    """Bytes that tensors of one storage hold on the device, as long as one of them lives."""

    holders: dict[int, int] = {}
    log = LOG

    def __init__(self, real: Tensor):
        storage = real.untyped_storage()
        self.key, self.size = storage._cdata, storage.nbytes()
        if self.key not in self.holders:
            self.log.live += self.size
            self.log.peak = max(self.log.peak, self.log.live)
        self.holders[self.key] = self.holders.get(self.key, 0) + 1

    def __del__(self) -> None:
        self.holders[self.key] -= 1
        if not self.holders[self.key]:
            del self.holders[self.key]
            self.log.live -= self.size


class Simulation(TorchDispatchMode):
    """Sees the operations that have no tensor of the device yet: those that make one."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not types and kwargs.get("device") is None and not kwargs.get("pin_memory"):
            if operation is not aten.is_pinned.default and operation is not aten._pin_memory.default:
                return operation(*args, **kwargs)
        return execute(operation, args, kwargs)


def execute(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    on_device = [a for a in flat if isinstance(a, SimulatedTensor)]
    on_cpu = [a for a in flat if isinstance(a, Tensor) and not isinstance(a, SimulatedTensor)]
    name = operation.overloadpacket.__name__
    if name == "is_pinned":
        return not on_device and is_pinned(args[0])
    if name == "_pin_memory":
        if on_device:
            raise DeviceError(f"only tensors of the CPU can be pinned, at {place()}")
        return pin(args[0].clone())
    if name in NOT_SIMULATED and on_device:
        raise NotImplementedError(f"the simulated device has no {operation}")
    if on_device and name in CHANGE_SHAPE:
        operation(args[0].held, *args[1:], **kwargs)
        with torch._C._DisableTorchDispatch():
            operation(*args, **kwargs)
        return args[0]

    kwargs = dict(kwargs)
    device = _indexed(kwargs.get("device"))
    pinned = bool(kwargs.pop("pin_memory", False)) and (device is None or device.type == "cpu")
    if operation in rules.COPIES:
        result_device = _copied(operation, args, kwargs, device)
    else:
        result_device = _meeting(operation, args, on_device, on_cpu, device)
    generators = [g for g in flat if isinstance(g, torch.Generator)]
    if generators:
        _check_generator(operation, generators[0], result_device)
    if on_device and (times := rules.waits(operation, args, kwargs)):
        LOG.synchronised(str(operation), times)
    if result_device.type == "cuda" and rules.starts_kernel(operation):
        LOG.launches[str(operation)] += 1

    real_kwargs = tree_map(_real, kwargs)
    if device is not None and device.type == "cuda":
        real_kwargs["device"] = CPU
    out = _compute(operation, tree_map(_real, args), real_kwargs)
    wrapped = {id(tensor.held): tensor for tensor in on_device}

    def result(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or isinstance(tensor, SimulatedTensor):
            return tensor
        if id(tensor) in wrapped:  # changed in place
            return wrapped[id(tensor)]
        if result_device.type == "cuda":
            return SimulatedTensor(tensor, result_device)
        return pin(tensor) if pinned else tensor

    return tree_map(result, out)


def _real(value: Any) -> Any:
    return value.held if isinstance(value, SimulatedTensor) else value


def _indexed(device: Any) -> torch.device | None:
    if device is None:
        return None
    device = torch.device(device)
    return (
        torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device
    )


def _copied(operation: Any, args: tuple, kwargs: dict[str, Any], device: torch.device | None) -> torch.device:
    """The device of a copy's result. The host waits unless the memory is pinned and the copy non_blocking."""
    source = args[1] if operation is aten.copy_.default else args[0]
    target = args[0].device if operation is aten.copy_.default else device or source.device
    background = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    if source.device.type != target.type and source.numel():
        if target.type == "cuda":
            if not (background and is_pinned(source)):
                LOG.synchronised(f"copy from {'pinned' if is_pinned(source) else 'pageable'} memory to the device")
        elif background and not (operation is aten.copy_.default and is_pinned(args[0])):
            raise DeviceError(
                f"a non_blocking copy from the device into pageable memory is read too early, at {place()}"
            )
        elif not background:
            LOG.synchronised("copy from the device")
        if target.type == "cpu":
            LOG.launches["copy from the device"] += 1
    if operation is aten._to_copy.default:
        kwargs.pop("non_blocking", None)
    return target


def _meeting(operation: Any, args: tuple, on_device: list, on_cpu: list, device: torch.device | None) -> torch.device:
    """The device on which an operation computes. Raises DeviceError where its tensors are on two."""
    places = {tensor.device for tensor in on_device}
    shown = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in [*on_device, *on_cpu])
    mixed = f"{operation}: expected all tensors to be on the same device, found {shown}, at {place()}"
    if len(places) > 1:
        raise DeviceError(mixed)
    if on_device and on_cpu:
        if operation in rules.INDEXING and isinstance(args[0], SimulatedTensor):
            values = [a for a in args[2:3] if not isinstance(a, SimulatedTensor) and a.dim()]
            if values:
                raise DeviceError(mixed)
            if any(i is not None and not isinstance(i, SimulatedTensor) for i in args[1]):
                LOG.synchronised("copy of an index from pageable memory to the device")
        elif any(tensor.dim() for tensor in on_cpu) or not rules.scalar_may_come_from_cpu(operation):
            raise DeviceError(mixed)
    if on_device and operation in rules.PRODUCTS and not on_device[0].dtype.is_floating_point:
        raise DeviceError(f'"{operation}" not implemented for {on_device[0].dtype} on CUDA, at {place()}')
    if device is not None:
        return device
    return places.pop() if places else CPU


def _check_generator(operation: Any, generator: torch.Generator, device: torch.device) -> None:
    if generator.device != device:
        raise DeviceError(
            f"{operation}: expected a generator of {device}, found one of {generator.device}, at {place()}"
        )


def _compute(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The operation on real tensors, with a generator of the device replaced by one of the CPU in the same state."""
    flat, _ = tree_flatten((args, kwargs))
    ours = next((g for g in flat if isinstance(g, torch.Generator) and g.device.type == "cuda"), None)
    if ours is None:
        return operation(*args, **kwargs)
    of_cpu_too = torch.Generator()
    of_cpu_too.set_state(ours.get_state())
    args, kwargs = tree_map(lambda a: of_cpu_too if a is ours else a, (args, kwargs))
    out = operation(*args, **kwargs)
    ours.set_state(of_cpu_too.get_state())
    return out
