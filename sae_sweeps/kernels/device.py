"""Whether a device works ahead of the host: the one place that decides between two formulations of an operation.

On a CPU a number that decides how much is computed can be read at once. On a GPU reading it would stop the host until
all queued work is done, so operations there have sizes that follow from the config and the batch's shape alone.
"""

from torch import Tensor


def works_ahead(tensor: Tensor) -> bool:
    """Whether the tensor's device takes work ahead of the host."""
    return tensor.device.type == "cuda"
