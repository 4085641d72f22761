"""torch.cuda of the simulated device: devices, streams, events, memory; and torch.tensor, which C++ keeps to itself."""

from __future__ import annotations

import ctypes
import threading
import types
from typing import Any

import torch
from torch import Tensor

from simulated_cuda.log import LOG
from simulated_cuda.tensor import SimulatedTensor, Simulation, of_cpu

NAME = "NVIDIA H100 80GB HBM3"
TOTAL = 80 * 10**9
N_DEVICES = 2


class Stream:
    """A queue of work. Work is done at once here, so that queues only count what the host waits for."""

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any):
        self.device = torch.device("cuda", index_of(device))

    def synchronize(self) -> None:
        LOG.synchronised("Stream.synchronize")

    def query(self) -> bool:
        return True

    def wait_stream(self, other: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> Stream:
        _queues.before.append((_queues.of[self.device.index], torch.cuda.current_device()))
        _queues.of[self.device.index] = self
        torch.cuda.set_device(self.device)
        return self

    def __exit__(self, *error: Any) -> None:
        stream, device = _queues.before.pop()
        _queues.of[self.device.index] = stream
        torch.cuda.set_device(device)


class Event:
    """Args:
    enable_timing: without it `elapsed_time` is refused, as by CUDA.
    """

    def __init__(self, enable_timing: bool = False, **kwargs: Any):
        self.timed, self.recorded = enable_timing, False

    def record(self, stream: Stream | None = None) -> None:
        self.recorded = True

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        LOG.synchronised("Event.synchronize")

    def elapsed_time(self, end: Event) -> float:
        if not (self.timed and end.timed and self.recorded and end.recorded):
            raise ValueError("both events must be recorded, and made with enable_timing=True")
        return 1.0


class _Queues(threading.local):
    """The current stream of each device, of each thread."""

    def __init__(self) -> None:
        self.of = list(DEFAULT)
        self.before: list[tuple[Stream, int]] = []


def index_of(device: Any) -> int:
    """The number of a device: an int, a name, a torch.device, or None for the current one."""
    if device is None:
        return torch.cuda.current_device()
    if isinstance(device, int):
        return device
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def start(guard: ctypes.CDLL) -> None:
    """Put the simulated device in the place of torch.cuda, in this process and in all threads that it starts."""
    global _queues, DEFAULT

    def exchange(index: int) -> int:
        if index >= N_DEVICES:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return guard.simulated_exchange_device(index)

    properties = types.SimpleNamespace(
        total_memory=TOTAL, name=NAME, major=9, minor=0, multi_processor_count=132, L2_cache_size=50 * 2**20,
        shared_memory_per_multiprocessor=233_472, shared_memory_per_block_optin=232_448, warp_size=32,
        regs_per_multiprocessor=65_536, max_threads_per_multi_processor=2048, is_integrated=0, uuid="0",
    )  # fmt: skip

    def set_device(device: Any) -> None:
        exchange(index_of(device))

    def peak(device: Any = None) -> int:
        return LOG.peak

    def live(device: Any = None) -> int:
        return LOG.live

    def reset_peak(device: Any = None) -> None:
        LOG.peak = LOG.live

    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None, "init": lambda: None, "is_initialized": lambda: True, "is_available": lambda: True,
        "device_count": lambda: N_DEVICES, "current_device": lambda: exchange(-1), "set_device": set_device,
        "_exchange_device": exchange, "_maybe_exchange_device": exchange,
        "is_bf16_supported": lambda *args, **kwargs: True, "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0), "get_device_properties": lambda device=None: properties,
        "synchronize": lambda device=None: LOG.synchronised("torch.cuda.synchronize"),
        "Stream": Stream, "Event": Event, "stream": lambda stream: stream,
        "current_stream": lambda device=None: _queues.of[index_of(device)],
        "default_stream": lambda device=None: DEFAULT[index_of(device)],
        "is_current_stream_capturing": lambda: False, "empty_cache": lambda: None, "memory_allocated": live,
        "memory_reserved": live, "max_memory_allocated": peak, "max_memory_reserved": peak,
        "reset_peak_memory_stats": reset_peak, "mem_get_info": lambda device=None: (TOTAL - LOG.live, TOTAL),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(), "get_arch_list": lambda: ["sm_80", "sm_90"],
        "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None, "utilization": lambda device=None: 0,
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    DEFAULT = [Stream(number) for number in range(N_DEVICES)]
    _queues = _Queues()
    torch.backends.cuda.is_built = lambda: True  # type: ignore[assignment]
    torch.tensor, torch.as_tensor = _tensor, _as_tensor  # type: ignore[assignment]
    torch.utils._foreach_utils._foreach_supported_types.append(SimulatedTensor)
    torch.__future__.set_swap_module_params_on_conversion(True)  # Module.to keeps the identity of a parameter
    torch.autograd.set_multithreading_enabled(False)  # the engine would give the device a thread without a simulation
    run = threading.Thread.run

    def run_simulated(self: threading.Thread) -> None:
        torch.autograd.set_multithreading_enabled(False)
        with Simulation():
            run(self)

    threading.Thread.run = run_simulated  # type: ignore[method-assign]
    Simulation().__enter__()


DEFAULT: list[Stream] = []
_queues: _Queues


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False):
    made: Tensor = of_cpu(data, dtype=dtype)
    made = made.pin_memory() if pin_memory else made
    made = made if device is None else made.to(device)
    return made.requires_grad_() if requires_grad else made


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    made = data if isinstance(data, Tensor) else _of_cpu_as(data)
    return made.to(device=device, dtype=dtype)


_of_cpu_as = torch.as_tensor
