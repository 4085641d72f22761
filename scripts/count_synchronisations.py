"""Counts how often the host waits for the device in a plain step, where, and how many kernels the step starts.

    python -m scripts.count_synchronisations [--wide] [WORD ...]

A plain step is neither logged nor monitored. It runs on the simulated device of tests/cuda, for every architecture with
every penalty; WORDs are added to each command. With --wide few features are active, as in a real SAE (4 of 512, in
place of 4 of 32), which takes some minutes. A number of launches counts operations that start a kernel: some of torch's
start several.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cuda"))

import simulated_cuda  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wide", action="store_true", help="few features are active")
    parser.add_argument("--architecture", help="this one alone")
    parser.add_argument("--penalty", help="this one alone")
    parser.add_argument("words", nargs="*")
    args = parser.parse_args()
    try:
        simulated_cuda.start()
    except simulated_cuda.CannotBuild as why:
        sys.exit(str(why))
    from plain_step import WIDE, combinations, counted

    cells: dict[str, dict[str, str]] = {}
    places: Counter[str] = Counter()
    for architecture, penalty, words in combinations():
        if args.architecture not in (None, architecture) or args.penalty not in (None, penalty):
            continue
        log = counted([*words, *(WIDE if args.wide else []), *args.words])
        waits, launches = sum(log.synchronisations.values()), sum(log.launches.values())
        cells.setdefault(architecture, {})[penalty] = f"{waits} / {launches}"
        places.update({where: 1 for where in log.by_place()})
        print(f"{architecture} {penalty}: {waits} / {launches}", file=sys.stderr, flush=True)
    penalties = list(next(iter(cells.values())))
    print("synchronisations / launches of a plain step\n")
    print("| |", " | ".join(penalties), "|\n|" + "---|" * (len(penalties) + 1))
    for architecture, row in cells.items():
        print(f"| {architecture} |", " | ".join(row[penalty] for penalty in penalties), "|")
    print("\nThe host waits at (and in how many of the combinations):")
    for where, n in sorted(places.items()):
        print(f"{n:4d}  {where}")


if __name__ == "__main__":
    main()
