"""A run's curves as small pictures of a few hundred bytes."""

import numpy as np

WIDTH, HEIGHT = 120, 26


def sparkline(x: np.ndarray, y: np.ndarray, points: int = 32) -> str:
    """The curve of y [n] over x [n] as SVG, from its least to its largest value; empty without two finite points."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 2:
        return ""
    if len(x) > points:
        kept = np.unique(np.linspace(0, len(x) - 1, points).round().astype(int))
        x, y = x[kept], y[kept]
    wide, high = x[-1] - x[0], y.max() - y.min()
    across = np.round((x - x[0]) / (wide or 1) * WIDTH).astype(int)
    down = np.round(HEIGHT - 1 - (y - y.min()) / (high or 1) * (HEIGHT - 2)).astype(int)
    path = "L".join(f"{a} {b}" for a, b in zip(across, down, strict=True))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden=true><path d="M{path}"/></svg>'
