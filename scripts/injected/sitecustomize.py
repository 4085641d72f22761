"""On PYTHONPATH: every process meets the fault of the environment variable SAE_SWEEPS_FAULT."""

import os

if "SAE_SWEEPS_FAULT" in os.environ:
    from scripts.fault_injection import install_from_environment

    install_from_environment()
