"""A plain step, neither logged nor monitored, of each architecture with each penalty, counted on the simulated device.

Import it after `simulated_cuda.start()`.
"""

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from simulated_cuda import LOG
from simulated_cuda.log import Log

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "training")]

from composed import D_IN, batch_at, choices, configured  # noqa: E402

from sae_sweeps.architectures.batch import Batch  # noqa: E402
from sae_sweeps.training.step import Training  # noqa: E402

DEVICE = torch.device("cuda:0")
K = 4
SIZE = {name: [f"k={K}"] for name in ("topk", "batch_topk", "matryoshka")} | {"jumprelu": [f"target_l0={K}"]}
SMALL = ["d_sae=32", "train.dead_after_tokens=32", "lr_schedule.decay=0"]
"""Some features are dead, so that the auxiliary loss has its say. K of 32 is many active features, for a real SAE."""
WIDE = ["d_sae=512"]
"""K of 512 is as few as real SAEs have: what chooses by that share chooses as there."""
GROUPS = ["group_layer=groups", "group_layer.group_size=8", "group_layer.residual=0.1"]


def batch(step: int, device: torch.device) -> Batch:
    """16 tokens in two windows, one of them to be forgotten."""
    return batch_at(step)[::4].to(device)


def made(words: list[str], device: torch.device) -> Training:
    return Training(configured(*SMALL, *words), 1.0, torch.zeros(D_IN, device=device), device)


def combinations() -> Iterator[tuple[str, str, list[str]]]:
    """Each architecture and penalty, and the words that choose them; the penalty that needs a group layer has one."""
    for architecture in choices("architecture"):
        for penalty in ("none", *choices("penalty")):
            words = [f"architecture={architecture}", f"penalty={penalty}", *SIZE.get(architecture, [])]
            yield architecture, penalty, words + (GROUPS if penalty == "bottleneck" else [])


def counted(words: list[str], before: int = 2) -> Log:
    """What the step after `before` others does."""
    training = made(["schedule=constant", *words], DEVICE)
    for step in range(before):
        training.step(batch(step, DEVICE), step)
    now = batch(before, DEVICE)
    LOG.clear()
    training.step(now, before)
    return deepcopy(LOG)
