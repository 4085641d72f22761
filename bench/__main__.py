"""Ours beside the other libraries, in interleaved rounds; writes its tables into docs/benchmarks.md.

python -m bench                          every part, on this machine's CPU
python -m bench --parts step penalty     some of them
python -m bench --device cuda            the studies' shapes on a GPU, after comparing each kernel there
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from bench import parts
from bench.machine import limits
from bench.report import write

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(parts.PARTS), default=list(parts.PARTS))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=DOCS, help="the file whose tables are replaced")
    parser.add_argument("--small", action="store_true", help="a tiny shape, to try the bench itself")
    words = parser.parse_args()
    if words.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    began = time.monotonic()
    torch.set_num_threads(words.threads)
    machine = limits(words.device)
    print(machine.text())
    for name in words.parts:
        if words.device == "cuda" and name not in parts.ON_GPU:
            continue
        lines = parts.PARTS[name](parts.Setting(words.device, words.rounds, words.threads, machine, words.small))
        print("\n".join(lines), flush=True)
        write(words.out, f"{name}-{words.device}", [machine.text(), "", *lines])
    print(f"{time.monotonic() - began:.0f} s; tables in {words.out}")


if __name__ == "__main__":
    main()
