"""What each penalty adds to a training step: interleaved, ratios to the same step without a penalty.

    python -m scripts.measure_penalties [--rounds N] [--clock wall|cpu] [--warm-up N] [--output FILE]
    python -m scripts.measure_penalties --dense [--d-sae 16384 --d-in 2304 --k 320]

Whole steps (forward, backward, clip, Adam, normalised decoder) of a TopK SAE, auxiliary loss off, that has been trained
for `--warm-up` steps on synthetic activations: sparse sums of random directions that are used with power-law frequency,
as features of language models are. All penalties see the same SAE on the same batch; what a step changes is put
back. `cpu` counts the process's processor time over all threads, which other work on the machine disturbs less.
`--dense` measures the sum of the progressive penalty alone where nearly all pairs meet, beside its matrix products.
"""

import argparse
import copy
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sae_sweeps.activations.batch import Batch
from sae_sweeps.architectures.features import TopKFeatures
from sae_sweeps.config.run import RunConfig
from sae_sweeps.files import write_text
from sae_sweeps.kernels import coactivation_cpu
from sae_sweeps.kernels.coactivation import Competition
from sae_sweeps.training.step import Training
