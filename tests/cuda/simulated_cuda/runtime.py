"""torch.cuda of the simulated device, and torch.tensor, which C++ keeps to itself."""

from __future__ import annotations

import ctypes
import threading
import types
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.cuda._utils import _get_device_index

from simulated_cuda.log import LOG
from simulated_cuda.streams import (
    N_DEVICES,
    Event,
    Stream,
    current_stream,
    default_stream,
    set_stream,
    synchronize,
)
from simulated_cuda.tensor import SimulatedTensor, Simulation, of_cpu

NAME = "NVIDIA H100 80GB HBM3"
TOTAL = 80 * 10**9


def start(guard: ctypes.CDLL) -> None:
    """Put the simulated device in the place of torch.cuda, in this process and in all threads that it starts."""

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
        exchange(_get_device_index(device))  # torch's own: it refuses a device without an index

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
        "synchronize": synchronize, "Stream": Stream, "Event": Event,
        "stream": lambda stream: nullcontext() if stream is None else stream, "set_stream": set_stream,
        "current_stream": current_stream, "default_stream": default_stream,
        "is_current_stream_capturing": lambda: False, "empty_cache": lambda: None, "memory_allocated": live,
        "memory_reserved": live, "max_memory_allocated": peak, "max_memory_reserved": peak,
        "reset_peak_memory_stats": reset_peak, "mem_get_info": lambda device=None: (TOTAL - LOG.live, TOTAL),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(), "get_arch_list": lambda: ["sm_80", "sm_90"],
        "set_sync_debug_mode": lambda mode: setattr(LOG, "sync_debug_mode", mode),
        "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None, "utilization": lambda device=None: 0,
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
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


def _tensor(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, pin_memory: bool = False):
    made: Tensor = of_cpu(data, dtype=dtype)
    made = made.pin_memory() if pin_memory else made
    made = made if device is None else made.to(device)
    return made.requires_grad_() if requires_grad else made


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    made = data if isinstance(data, Tensor) else _of_cpu_as(data)
    return made.to(device=device, dtype=dtype)


_of_cpu_as = torch.as_tensor
