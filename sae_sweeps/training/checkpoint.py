"""The state that resumes a run exactly, in one safetensors file: written whole or not at all, no pickle.

Batches and random draws are functions of the step, so there is no random state to store.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.files import write_bytes
from sae_sweeps.training.step import WATCHED_PAIRS, Training

FILE = "state.safetensors"


def save_checkpoint(training: Training, step: int, folder: Path) -> None:
    """Write the state before `step` (steps 0 .. step-1 are done). Raises Diverged if one of them was not finite."""
    training.nonfinite_guard.check(wait=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(training).items()}
    tensors["step"] = torch.tensor(step)
    tensors["scale"] = torch.tensor(training.scale, dtype=torch.float64)
    tensors["checksum"] = torch.tensor(_checksum(tensors))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / FILE, save(tensors))


def has_checkpoint(folder: Path) -> bool:
    return (folder / FILE).exists()


def load_checkpoint(training: Training, folder: Path) -> int:
    """Load a checkpoint's state into `training`; return the next step.

    Raises DamagedFile, naming the file, when it is damaged or does not fit the run.
    """
    path = folder / FILE
    mend = f"delete {folder} to train this run from the start"
    try:
        tensors = load_file(path)
        checksum = int(tensors.pop("checksum"))
    except (SafetensorError, OSError, KeyError) as error:
        raise DamagedFile(f"{path}: the checkpoint is damaged ({error}); {mend}.") from None
    if checksum != _checksum(tensors):
        raise DamagedFile(f"{path}: the checkpoint is damaged (its checksum does not match); {mend}.")
    step, scale = int(tensors.pop("step")), float(tensors.pop("scale"))
    live = _tensors(training)
    # checkpoints of earlier versions: pairs are chosen anew
    tensors = {name: tensor for name, tensor in tensors.items() if name in live or not name.endswith(".watched")}
    tensors |= {name: tensor for name, tensor in live.items() if name.startswith(WATCHED_PAIRS) and name not in tensors}
    if live.keys() != tensors.keys() or any(live[name].shape != tensors[name].shape for name in live):
        raise DamagedFile(f"{path}: the checkpoint does not fit this run's config; {mend}.")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(tensors[name])
    training.scale = scale
    return step


def _tensors(training: Training) -> dict[str, Tensor]:
    """Live tensors of the state by name: weights, buffers, Adam's moments."""
    state = {
        f"{prefix}.{name}": tensor
        for prefix, module in training.modules().items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    for name, parameter in training.named_parameters():
        for key, tensor in training.optimizer.state[parameter].items():
            state[f"adam.{name}.{key}"] = tensor
    return state


def _checksum(tensors: dict[str, Tensor]) -> int:
    crc = 0
    for name in sorted(tensors):
        content: Any = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(content, zlib.crc32(name.encode(), crc))
    return crc
