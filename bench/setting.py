"""What a bench is measured with: the device, the shapes and how often."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.data import Shape

ROOT = Path(__file__).parents[1]
PACKAGES = ROOT / ".bench-packages"
"""Packages of `make bench-packages`, for a machine that lacks them; __init__.py puts them into the path."""
STUDIES = Shape(batch=2048, d_in=2304, d_sae=16384, k=40, device="cuda", bfloat16=True)
"""The studies' shape, on a GPU."""


@dataclass
class Setting:
    device: str
    rounds: int
    threads: int
    folder: str
    """Where results go."""
    small: bool = False
    """A shape at which everything takes no time, to try the bench itself."""
    ends: float = float("inf")
    """When the part is killed, by time.time()."""
    gflops: float | None = None
    """The machine's rate in a square matrix product, where it has been measured."""

    @classmethod
    def read(cls, text: str) -> Setting:
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(self))

    def shape(self, k: int = 32) -> Shape:
        if self.small:
            return Shape(batch=16, d_in=8, d_sae=64, k=k // 16, device=self.device, bfloat16=self.device == "cuda")
        return replace(STUDIES, k=k) if self.device == "cuda" else Shape(k=k)

    def shapes(self) -> list[Shape]:
        """A small k and a large one: the studies' on a GPU."""
        return [self.shape(k) for k in ((40, 320) if self.device == "cuda" else (32, 128))]

    def step_shapes(self) -> list[Shape]:
        """`shapes`, and on a CPU the studies' as well."""
        of_studies = [replace(STUDIES, k=k, device="cpu", bfloat16=False) for k in (40, 320)]
        return [*self.shapes(), *(of_studies if self.device == "cpu" and not self.small else ())]

    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.ends - time.time()

    def environment(self, **more: str) -> dict[str, str]:
        """Environment of a process that measures for a part."""
        places = [ROOT, os.environ.get("PYTHONPATH"), PACKAGES if PACKAGES.exists() else None]
        path = os.pathsep.join(str(place) for place in places if place)
        return os.environ | {"OMP_NUM_THREADS": str(self.threads), "PYTHONPATH": path} | more
