"""Out of memory, in every word that the libraries have for it."""

import errno

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from sae_sweeps.errors import ConfigError, out_of_memory


class OutOfResources(Exception):
    """Triton's: a kernel wants more shared memory than the GPU has."""


WORDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cudaErrorMemoryAllocation: the API call failed"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("not enough memory: you tried to allocate 5 bytes"),
    RuntimeError("unable to mmap 800 bytes from file </x>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    SafetensorError('I/O error: Os { code: 12, kind: OutOfMemory, message: "Cannot allocate memory" }'),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
    MemoryError("Allocation failed (probably too large)."),
    np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("float32")),
]
OTHERS = [
    OutOfResources("out of resource: shared memory, Required: 300000, Hardware limit: 232448. Reducing block sizes"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`"),
    RuntimeError("pin_memory is not available"),
    ConfigError("activations.mode=memory: out of memory"),  # ends the command with its own sentence
    OSError(errno.ENOSPC, "No space left on device"),
    KeyError("out of memory"),
]


@pytest.mark.parametrize("error", WORDS, ids=lambda error: str(error)[:30] or type(error).__name__)
def test_known(error):
    assert out_of_memory(error)
    try:
        raise RuntimeError("the plug-in failed") from error
    except RuntimeError as wrapped:
        assert out_of_memory(wrapped)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:30])
def test_not_taken_for_it(error):
    assert not out_of_memory(error)


def test_torchs_own_on_this_machine():
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)
    assert out_of_memory(found.value)


def test_a_checkpoint_that_finds_no_memory_is_not_called_damaged(tmp_path, monkeypatch):
    from sae_sweeps.training import checkpoint

    def full(path):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(checkpoint, "load_file", full)
    with pytest.raises(OSError, match="Cannot allocate"):
        checkpoint.load_checkpoint(None, tmp_path)
