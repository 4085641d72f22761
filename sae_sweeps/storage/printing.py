"""Printing that outlives its reader."""

import os
import sys


def print_line(text: str = "") -> None:
    """Print a line. Once nobody reads (`| head`, a closed terminal) the rest goes nowhere, and the runs go on."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
