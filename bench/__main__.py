"""Everything that is measured, part by part: ours beside the plain formulas, the other libraries and the machine.

python -m bench                          every part, on this machine's CPU; its rows go into docs/benchmarks.md
python -m bench --parts step penalty     some of them
python -m bench --device cuda            on a GPU, within ten minutes, without network (docs/cuda.md)

Each part runs in a process of its own until its limit. Its numbers are in FOLDER/results.jsonl at once, its tables in
FOLDER/page.md when it ends; what is left out is there too, with the reason. What a CPU has measured is added to
bench/results.jsonl, from which docs/benchmarks.md shows each machine's last numbers side by side.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench import records
from bench.machine import clocks, commit, instructions, name
from bench.parts import PARTS
from bench.records import Record
from bench.results import FILE, Results, read, tables, write
from bench.setting import ROOT, Setting

DOCS = ROOT / "docs" / "benchmarks.md"
PAGE = "page.md"
LEAST = 10.0
"""Seconds in which a part can measure something."""


def main() -> int:
    words = arguments()
    folder = words.out or ROOT / "outputs" / "bench" / f"{words.device}{'-small' * words.small}"
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(words.device, words.rounds, words.threads, str(folder.resolve()), words.small)
    patience = words.patience or (1 if words.device == "cuda" else 5)
    limits = {part: round(patience * PARTS[part].limit) for part in PARTS}
    left_out = {part: why for part in PARTS if (why := words.skip.get(part) or why_not(part, words))}
    plan = {part: limit for part, limit in limits.items() if part not in left_out}
    place = name(words.device), instructions(), torch.__version__, words.threads
    where = f"{place[0]}; torch {torch.__version__}, {words.threads} threads"
    print(f"{where}; numbers in {folder / FILE}, tables in {folder / PAGE}")
    print(f"at most {sum(plan.values())} s: {', '.join(f'{part} {limit} s' for part, limit in plan.items())}")
    at = time.strftime("%Y-%m-%d %H:%M:%S")
    Results(folder, "plan").line(at=at, command=sys.argv[1:], limits=plan, left_out=left_out)
    began, failed = time.monotonic(), []
    rates: dict[str, float] = {}
    for part in PARTS:
        left = (words.limit or float("inf")) - (time.monotonic() - began)
        if part in plan and left < LEAST:
            left_out[part] = f"--limit {words.limit:.0f}: no time was left"
        start, offset = time.monotonic(), (folder / FILE).stat().st_size
        facts = {"status": f"left out: {left_out[part]}"} if part in left_out else {"clocks before": clocks()}
        if part not in left_out:
            facts["status"] = run(part, setting, min(limits[part], left))
            facts |= {"time": f"{time.monotonic() - start:.0f} s", "clocks after": clocks()}
        lines = read(folder, offset)
        facts["peak"] = ", ".join(f"{line['peak_gb']:.2f} GB" for line in lines if "peak_gb" in line)
        facts = {fact: value for fact, value in facts.items() if value}
        Results(folder, part).line(**facts)
        setting.gflops = next((line["gflops"] for line in reversed(lines) if "gflops" in line), setting.gflops)
        rates |= {row["unit"]: row["rate"] for line in lines if "rate" in (row := line.get("row", {}))}
        status = facts.pop("status")
        text = [f"**{part}**: {'; '.join([status, *(f'{fact} {value}' for fact, value in facts.items())])}."]
        text += [] if part in left_out else [f"{where}.", *tables(lines)]
        print("\n".join(["", *text]), flush=True)
        write(folder / PAGE, f"{part}-{words.device}", text, keep=part in left_out)
        if status == "done" and words.device == "cpu" and not (words.small or words.out):
            measured = [(line["table"], line["row"]) for line in lines if "row" in line]
            records.add(Record(part, *place, time.strftime("%Y-%m-%d"), commit(), rates, measured))
            write(DOCS, f"{part}-{words.device}", records.side_by_side(records.latest(part)), add=False)
        failed += [f"{part}: {status}"] if part not in left_out and status != "done" else []
    print(f"\n{time.monotonic() - began:.0f} s; numbers in {folder / FILE}, tables in {folder / PAGE}")
    if failed:
        print("\n".join(failed), file=sys.stderr)
    return int(bool(failed))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--skip", nargs="+", default=[], metavar="PART=WHY", help="leave parts out, and record why")
    parser.add_argument("--limit", type=float, help="seconds after which no more is measured")
    parser.add_argument("--patience", type=float, help="multiple of the parts' limits: 1 on a GPU, 5 on a CPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="by default outputs/bench/DEVICE")
    parser.add_argument("--small", action="store_true", help="a tiny shape, to try the bench itself")
    words = parser.parse_args()
    words.skip = {part: why or "--skip" for part, _, why in (word.partition("=") for word in words.skip)}
    if unknown := sorted(words.skip.keys() - PARTS.keys()):
        parser.error(f"--skip {unknown[0]}: no such part; choose from {', '.join(PARTS)}")
    if words.device == "cuda" and not torch.cuda.is_available():
        parser.error(
            f"--device cuda: torch {torch.__version__} of {sys.executable} sees no GPU here; a CUDA build comes with "
            "make install TORCH_INDEX=..., another Python with make bench-gpu PYTHON=..."
        )
    return words


def why_not(part: str, words: argparse.Namespace) -> str | None:
    """Why a part is left out; None where it is measured."""
    if part not in words.parts:
        return "not among --parts"
    if words.device not in PARTS[part].devices:
        return f"not measured on {words.device}"
    missing = [module for module in PARTS[part].needs if importlib.util.find_spec(module) is None]
    return f"{', '.join(missing)} cannot be imported here" if missing else None


def run(part: str, setting: Setting, limit: float) -> str:
    """Measure a part in a process of its own; how it ended: done, or why not."""
    setting = replace(setting, ends=time.time() + limit)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.part", part, setting.text()],
            cwd=ROOT, env=setting.environment(), stderr=errors, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"ended at its limit of {limit:.0f} s"
        finally:
            end(process)
        errors.seek(0)
        text = errors.read()
        if not status:
            return "done"
        sys.stderr.write(text[-4000:])
        return f"failed (status {status}): {(text.strip().splitlines() or ['nothing on stderr'])[-1][:500]}"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part and every process that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part in progress as well
    sys.exit(main())
