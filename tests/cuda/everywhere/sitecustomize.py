"""With this folder and tests/cuda in PYTHONPATH, every Python that starts has the simulated device, children too."""

import simulated_cuda

simulated_cuda.start()
