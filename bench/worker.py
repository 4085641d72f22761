"""One contender in a process of its own, which runs training steps on request and reports their seconds.

    python -m bench.worker CONTENDER THREADS '{"shape": {...}, ...}'

Input: the number of steps, one request a line; an empty line ends the process. Output: a line of JSON per request.
"""

from __future__ import annotations

import json
import resource
import sys

import torch

from bench.contenders import CONTENDERS
from bench.data import Shape
from bench.timing import synchronized


def main() -> None:
    name, threads, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    torch.set_num_threads(threads)
    shape = Shape(**settings.pop("shape"))
    step, done = CONTENDERS[name](shape, **settings), 1
    step(0)  # compiles, while others start
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        start = synchronized(shape.device)
        for _ in range(int(line)):
            step(done)
            done += 1
        answer = {"seconds": (synchronized(shape.device) - start) / int(line), "peak_gb": peak_gb(shape.device)}
        print(json.dumps(answer), file=out, flush=True)


def peak_gb(device: str) -> float:
    """Largest memory so far in GB: the process's own, or what it allocated on the GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
