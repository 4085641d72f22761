"""Whether a device works ahead of the host: the one place that decides between two formulations of an operation.

On a CPU a number that decides how much is computed can be read at once. On a GPU reading it would stop the host until
all queued work is done, so operations there have sizes that follow from the config and the batch's shape alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def works_ahead(tensor: Tensor) -> bool:
    """Whether the tensor's device takes work ahead of the host."""
    return tensor.device.type == "cuda"


@contextmanager
def float32_products(device: torch.device, kind: str) -> Iterator[None]:
    """Products of float32 matrices on a GPU taken as `kind` says, float32 or tf32."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
