import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from sae_sweeps.kernels.memory import keep_what_is_freed
if sys.argv[1] == "keep":
    keep_what_is_freed()
for step in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    four = [torch.ones(2**22) for _ in range(4)]
    del four
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
def test_what_one_step_frees_the_next_one_gets():
    """Four tensors of 16 MB are 16,384 pages of 4 kB."""
    faults = {
        word: int(
            subprocess.run([sys.executable, "-c", STEPS, word], capture_output=True, text=True, check=True).stdout
        )
        for word in ("keep", "leave")
    }
    assert faults["keep"] < 1000 < faults["leave"]
