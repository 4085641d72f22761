"""Batches made on a CUDA stream of their own, beside the training; on a CPU they are just made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_sweeps.architectures.batch import Batch

Made = TypeVar("Made")


class SideStream:
    """`make` in one thread, then `take` in another, for one thing at a time."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))  # the activations and the model are there

    def make(self, draw: Callable[..., Made], *words: Any) -> tuple[Made, torch.cuda.Event | None]:
        """draw(*words), with its work for the device queued on this stream, and the event of its end there."""
        if self.stream is None:
            return draw(*words), None
        with torch.cuda.stream(self.stream):
            made, ready = draw(*words), torch.cuda.Event()
            ready.record(self.stream)
        return made, ready

    def take(self, made: Made, ready: torch.cuda.Event | None) -> Made:
        """What was made, for use on the current stream, which waits for it; the host does not."""
        if ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(ready)
            for tensor in _tensors(made):
                tensor.record_stream(stream)  # its memory is not used again before this stream is done with it
        return made


def _tensors(made: Any) -> Iterator[Tensor]:
    """Those of a batch, or of a dict of batches."""
    if isinstance(made, Mapping):
        for value in made.values():
            yield from _tensors(value)
    elif isinstance(made, Batch):
        yield from made.fields()
