"""This machine's GPUs by the driver's own listing, found without torch."""

import os
import re
import subprocess

GPU = re.compile(r"GPU (\d+): ")
MIG = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def visible_gpus() -> list[str]:
    """The GPUs that a process may use, by their names in CUDA_VISIBLE_DEVICES, else those that the driver lists.

    Of a GPU that is partitioned (MIG) its instances are listed. Like CUDA, those after an invalid one are left out.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return _listed()
    found: list[str] = []
    for word in map(str.strip, given.split(",")):
        if not (word.isdigit() or word.startswith(("GPU-", "MIG-"))) or word in found:
            break
        found.append(word)
    return found


def _listed() -> list[str]:
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found: list[str] = []
    for line in listing.stdout.splitlines() if listing.returncode == 0 else []:
        if gpu := GPU.match(line):
            found.append(gpu[1])
        elif instance := MIG.match(line):
            if found and found[-1].isdigit():
                found.pop()
            found.append(instance[1])
    return found
