"""Sweeps of sparse autoencoders: train, judge, compare."""

import os

# OpenMP's threads spin for milliseconds after each of torch's operations, on the cores that the kernels' own threads
# are to run on next: a step took a quarter longer. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
