"""One part in a process of its own: `python -m bench.part NAME SETTING`, as bench/__main__.py starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bench.parts import PARTS
from bench.results import Results
from bench.setting import Setting
from bench.worker import peak_gb


def main() -> None:
    name, setting = sys.argv[1], Setting.read(sys.argv[2])
    torch.set_num_threads(setting.threads)
    results = Results(Path(setting.folder), name)
    try:
        PARTS[name].function(setting, results)
    finally:
        results.line(peak_gb=peak_gb(setting.device))


if __name__ == "__main__":
    main()
