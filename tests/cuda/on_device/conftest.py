"""Tests on the simulated device, in a process of its own that test_simulated_device.py starts."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
collect_ignore_glob = [] if "simulated_cuda" in sys.modules else ["test_*.py"]
sys.path[:0] = [str(TESTS / folder) for folder in (".", "cuda", "training", "evaluation")]
