"""How figures look: colours that colour-blind readers tell apart, and line styles and markers that grey paper keeps."""

import io
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008), without the yellow that white paper swallows."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#9a9a9a"

RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.use_mathtext": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: smaller files, searchable
    "svg.hashsalt": "sae-sweeps",  # the same figure, the same bytes
    "text.parse_math": False,  # titles of runs are data
    "path.simplify_threshold": 0.5,
}

PANEL = (3.1, 2.1)
"""Inches of one panel."""


def look(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line of that number; no two of the first 280 are alike."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


@contextmanager
def style() -> Iterator[None]:
    """Settings for everything drawn inside; a letter that the font has not is drawn as a box, without a word."""
    import matplotlib

    log = logging.getLogger("matplotlib")
    level = log.level
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def panels(n: int, columns: int = 3, size: tuple[float, float] = PANEL, **kwargs: Any) -> tuple["Figure", list[Any]]:
    """A figure with n panels in rows of at most `columns`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, n)
    rows = -(-n // columns)
    fig = Figure(figsize=(max(size[0] * columns, 4.2), size[1] * rows + 0.3), layout="constrained")
    FigureCanvasAgg(fig)
    axes = list(fig.subplots(rows, columns, squeeze=False, **kwargs).flat)
    for spare in axes[n:]:
        spare.remove()
    return fig, axes[:n]


def finish(fig: "Figure", handles: Sequence[Any] = (), labels: Sequence[str] = (), note: str = "") -> "Figure":
    """Put the note below the panels and the legend below it, in as many columns as its labels leave room for."""
    note = "\n".join(textwrap.wrap(note, int(fig.get_figwidth() * 17)))
    if handles:
        words = [f" {label}" if label.startswith("_") else label for label in labels]  # matplotlib hides `_...`
        room = fig.get_figwidth() / (0.55 + 0.062 * max(map(len, words)))
        fig.legend(
            handles, words, loc="outside lower left", ncols=max(1, min(len(words), int(room))), alignment="left",
            title=note or None, title_fontsize=7,
        )  # fmt: skip
    elif note:
        fig.supxlabel(note, fontsize=7, x=0.01, ha="left")
    return fig


def log_scale(ax: Any, letter: str) -> None:
    """A logarithmic axis (x or y) with plain labels, some between the powers of ten where there are few."""
    from matplotlib.ticker import LogFormatter, NullFormatter

    getattr(ax, f"set_{letter}scale")("log", nonpositive="mask")
    axis = getattr(ax, f"{letter}axis")
    low, high = axis.get_view_interval()
    axis.set_major_formatter(LogFormatter())
    few = high / max(low, 1e-300) < 100
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(3, 1)) if few else NullFormatter())


def png(fig: "Figure", dpi: int = 150, colours: int | None = None) -> bytes:
    """The figure as PNG; with `colours` as a palette of so many, a third of the size."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi)
    if colours is None:
        return out.getvalue()
    from PIL import Image

    out.seek(0)
    small = io.BytesIO()
    with Image.open(out) as image:
        image.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def svg(fig: "Figure") -> str:
    """The figure as SVG: no date, the same bytes for the same figure."""
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()
