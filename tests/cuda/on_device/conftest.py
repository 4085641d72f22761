"""Tests on the simulated device, in a process of its own that test_simulated_device.py starts."""

import sys

collect_ignore_glob = [] if "simulated_cuda" in sys.modules else ["test_*.py"]
