"""A batch of activations with the tokens they belong to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """Activations of B tokens, and each token's place in the text."""

    x: Tensor
    """Activations [B, d_in], float32 on the run's device."""
    token_ids: Tensor
    """Vocabulary id of the token [B], int32."""
    sequence: Tensor
    """Number of the token's context [B], int32."""
    position: Tensor
    """Position within the context, BOS = 0 [B], int32."""
    role: Tensor
    """Role of the text [B], int8: 0 plain, 1 retain, 2 forget, 3 and up labels."""
    norm: Tensor = None  # type: ignore[assignment]
    """Norm of each activation as the language model gave it [B], float32; computed from x where it is not given."""

    def __post_init__(self) -> None:
        if self.norm is None:
            self.norm = norms_of(self.x)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return Batch(*(t[rows] for t in self.fields()))

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.x, self.token_ids, self.sequence, self.position, self.role, self.norm

    def to(self, device: torch.device) -> "Batch":
        """The batch on the device; to a GPU through pinned memory, without waiting for it."""
        return Batch(*(to_device(tensor, device) for tensor in self.fields()))

    @staticmethod
    def concatenate(batches: Sequence["Batch"]) -> "Batch":
        return Batch(*(torch.cat(tensors) for tensors in zip(*(b.fields() for b in batches), strict=True)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; a copy from the CPU to a GPU goes through pinned memory, and the host does not wait for it."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def norms_of(x: Tensor) -> Tensor:
    """The Euclidean norm of each row of x [..., d_in], float32."""
    return torch.linalg.vector_norm(x.float(), dim=-1)
