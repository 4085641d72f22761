"""A tensor that is on cuda:N for everybody and holds a real one of the CPU, which computes its numbers.

Every operation passes `execute`: it refuses what CUDA refuses, logs what CUDA would wait for, and computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from simulated_cuda import order, rules
from simulated_cuda.log import LOG, DeviceError, place
from simulated_cuda.pinned import is_pinned, pin
from simulated_cuda.streams import current_stream, host_waits

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
    memory: _Memory | None

    @staticmethod
    def __new__(cls, real: Tensor, device: torch.device) -> SimulatedTensor:
        how: dict[str, Any] = {"dtype": real.dtype, "layout": real.layout, "device": device, "requires_grad": False}
        if real.layout is torch.strided:
            how |= {"strides": real.stride(), "storage_offset": real.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, real.size(), **how)
        made.held = real
        made.memory = _Memory(real, device) if real.layout is torch.strided else None
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

    def record_stream(self, stream: Any) -> None:
        order.record_stream(order.key_of(self.held))

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
    log, freed = LOG, staticmethod(order.freed)

    def __init__(self, real: Tensor, device: torch.device):
        storage = real.untyped_storage()
        self.key, self.size = storage._cdata, storage.nbytes()
        self.holders[self.key] = self.holders.get(self.key, 0) + 1
        if self.holders[self.key] == 1:
            self.log.live += self.size
            self.log.peak = max(self.log.peak, self.log.live)
            order.allocated(self.key, current_stream(device))

    def __del__(self) -> None:
        self.holders[self.key] -= 1
        if not self.holders[self.key]:
            del self.holders[self.key]
            self.freed(self.key)
            self.log.live -= self.size


class Simulation(TorchDispatchMode):
    """Sees the operations that have no tensor of the device yet: those that make one, and those of the host."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not types and kwargs.get("device") is None and not kwargs.get("pin_memory"):
            if operation is not aten.is_pinned.default and operation is not aten._pin_memory.default:
                if order.pinned_in_use() and not rules.is_view(operation):
                    order.host_uses(_tensors(args), _changed(operation, args, kwargs), operation)
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
        result_device, wait = _copied(operation, args, kwargs, device)
    else:
        result_device, wait = _meeting(operation, args, on_device, on_cpu, device)
    _check_generators(operation, flat, result_device)
    works_on = result_device if result_device.type == "cuda" else on_device[0].device if on_device else None
    view = rules.is_view(operation)
    if works_on and not view:
        before = [*map(order.key_of, filter(_has_memory, flat))]
        changed = {*map(order.key_of, filter(_has_memory, _changed(operation, args, kwargs)))}
        stream = current_stream(works_on)
        others = {current_stream(tensor.device) for tensor in on_device} - {stream}
        for other in others:  # a copy between devices waits for both
            stream.wait_stream(other)
        order.works(stream, set(before), changed, operation)
        for other in others:
            other.wait_stream(stream)
        if rules.starts_kernel(operation):
            LOG.launches[str(operation)] += 1
        times = rules.waits(operation, args, kwargs) if on_device else 0
        if wait or times:
            LOG.synchronised(wait or str(operation), times or 1)
            host_waits(works_on)

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
            made = SimulatedTensor(tensor, result_device)
            if not view and made.memory is not None:
                order.made(made.memory.key, current_stream(result_device))
            return made
        return pin(tensor) if pinned else tensor

    return tree_map(result, out)


def _real(value: Any) -> Any:
    return value.held if isinstance(value, SimulatedTensor) else value


def _tensors(args: Any) -> list[Tensor]:
    return [a for a in tree_flatten(args)[0] if isinstance(a, Tensor)]


def _has_memory(value: Any) -> bool:
    """On the device, or pinned: memory that streams use."""
    if isinstance(value, SimulatedTensor):
        return value.memory is not None
    return isinstance(value, Tensor) and is_pinned(value)


def _changed(operation: Any, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    found = []
    for number, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[number] if number < len(args) else kwargs.get(argument.name))
    return _tensors(found)


def _indexed(device: Any) -> torch.device | None:
    if device is None:
        return None
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _copied(operation: Any, args: tuple, kwargs: dict[str, Any], device: torch.device | None) -> tuple:
    """The device of a copy's result, and what the host waits for: nothing if memory is pinned and it is non_blocking.

    Raises DeviceError for a copy into pageable memory that nothing waits for.
    """
    source = args[1] if operation is aten.copy_.default else args[0]
    target = args[0].device if operation is aten.copy_.default else device or source.device
    background = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    if operation is aten._to_copy.default:
        kwargs.pop("non_blocking", None)
    if source.device.type == target.type or not source.numel():
        return target, None
    if target.type == "cuda":
        memory = "pinned" if is_pinned(source) else "pageable"
        return target, None if background and is_pinned(source) else f"copy from {memory} memory to the device"
    if background and not (operation is aten.copy_.default and is_pinned(args[0])):
        raise DeviceError(f"a non_blocking copy from the device into pageable memory is read too early, at {place()}")
    return target, None if background else "copy from the device"


def _meeting(operation: Any, args: tuple, on_device: list, on_cpu: list, device: torch.device | None) -> tuple:
    """The device on which an operation computes, and what the host waits for.

    Raises DeviceError where its tensors are on two devices.
    """
    wait, places = None, {tensor.device for tensor in on_device}
    mixed = len(places) > 1
    if on_device and on_cpu:
        if operation in rules.INDEXING and isinstance(args[0], SimulatedTensor):
            mixed |= any(not isinstance(a, SimulatedTensor) and a.dim() > 0 for a in args[2:3])
            if any(i is not None and not isinstance(i, SimulatedTensor) for i in args[1]):
                wait = "copy of an index from pageable memory to the device"
        else:
            mixed |= any(tensor.dim() for tensor in on_cpu) or not rules.scalar_may_come_from_cpu(operation)
    if mixed:
        shown = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in [*on_device, *on_cpu])
        raise DeviceError(f"{operation}: expected all tensors to be on the same device, found {shown}, at {place()}")
    if on_device and operation in rules.PRODUCTS and not on_device[0].dtype.is_floating_point:
        raise DeviceError(f'"{operation}" not implemented for {on_device[0].dtype} on CUDA, at {place()}')
    return device or (places.pop() if places else CPU), wait


def _check_generators(operation: Any, values: list[Any], device: torch.device) -> None:
    for generator in values:
        if isinstance(generator, torch.Generator) and generator.device != device:
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
