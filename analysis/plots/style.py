"""The style of figures: colours that are distinct for colour-blind readers, and dashes and markers for grey print."""

import io
import logging
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008), without yellow, which is too pale on white."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY, DIM = "#9a9a9a", "#6b6b6b"
"""Of lines in the background, and of words in place of a value."""
BAR, EDGE = "#a9c9e2", "#2b5d86"
"""Fill and edge of all bars; their labels identify them."""

RC: Any = {
    "axes.formatter.useoffset": False,  # a sum of two numbers is no label
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titley": 1.03,  # looking for a place above ticks costs a third of the drawing
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
NARROWEST = 4.2
"""Inches; a note needs so much."""
LINE = 0.165
"""Inches of a line of small text."""


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
    log = logging.getLogger("matplotlib")
    level = log.level
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


@dataclass(frozen=True)
class Room:
    """Inches around each panel's axes, for labels and title; fixed, as measuring texts costs more than drawing them."""

    left: float = 0.66
    bottom: float = 0.42
    right: float = 0.12
    top: float = 0.26


def panels(
    n: int,
    columns: int = 3,
    size: tuple[float, float] = PANEL,
    room: Room | None = None,
    left: float = 0,
    right: float = 0,
    **kwargs: Any,
) -> tuple[Figure, list[Any]]:
    """A figure with n panels of that size in rows of at most `columns`, room within each, and more beside them all."""
    room, columns = room or Room(), min(columns, n)
    rows = -(-n // columns)
    width, height = max(left + size[0] * columns + right, NARROWEST), size[1] * rows
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    grid = fig.subplots(rows, columns, squeeze=False, **kwargs)
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * size[0] + room.left, (rows - 1 - row) * size[1] + room.bottom
            w, h = size[0] - room.left - room.right, size[1] - room.bottom - room.top
            grid[row, column].set_position((x / width, y / height, w / width, h / height))
    axes = list(grid.flat)
    for ax in axes[:n]:
        ax.locator_params(nbins=4)  # texts take most of the time, and a small panel needs few
    for spare in axes[n:]:
        spare.remove()
    if n % columns and kwargs.get("sharex"):  # those above a removed panel have the labels now
        for ax in axes[n - columns : n]:
            ax.tick_params(labelbottom=True)
    return fig, axes[:n]


def add_below(fig: Figure, inches: float) -> None:
    """Make the figure higher, with that much room at its foot; nothing else changes its size."""
    width, before = fig.get_size_inches()
    after = before + inches
    fig.set_size_inches(width, after)
    for ax in fig.axes:
        x, y, w, h = ax.get_position().bounds
        ax.set_position((x, (y * before + inches) / after, w, h * before / after))


def finish(fig: Figure, handles: Sequence[Any] = (), labels: Sequence[str] = (), note: str = "") -> Figure:
    """Put the note below the panels and the legend below it, in as many columns as its labels leave room for."""
    width = fig.get_figwidth()
    lines = textwrap.wrap(note, int(width * 16))
    words = [f" {label}" if label.startswith("_") else label for label in labels]  # matplotlib hides `_...`
    columns = max(1, min(len(words), int(width / (0.6 + 0.062 * max(map(len, words)))))) if words else 1
    legend = LINE * -(-len(words) // columns)
    add_below(fig, 0.06 + LINE * len(lines) + legend + (0.06 if words else 0))
    height = fig.get_figheight()
    if words:
        fig.legend(
            handles, words, loc="lower left", bbox_to_anchor=(0.04 / width, 0), ncols=columns, borderaxespad=0,
            borderpad=0.3, labelspacing=0.35,
        )  # fmt: skip
    if lines:
        y = (legend + (0.1 if words else 0.05)) / height
        fig.text(0.06 / width, y, "\n".join(lines), fontsize=7, va="bottom", linespacing=1.3)
    return fig


def log_scale(ax: Any, letter: str) -> None:
    """A logarithmic axis (x or y) with plain labels, some between the powers of ten where there are few."""
    getattr(ax, f"set_{letter}scale")("log", nonpositive="mask")
    axis = getattr(ax, f"{letter}axis")
    low, high = axis.get_view_interval()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    decades = high / max(low, 1e-300)
    axis.set_major_formatter(plain)
    axis.set_minor_locator(LogLocator(subs=range(2, 10) if decades < 3 else (2, 3, 5)))
    axis.set_minor_formatter(plain if decades < 100 else NullFormatter())


def png(fig: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG."""
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=dpi)
    return out.getvalue()


def small_png(fig: Figure, dpi: int) -> bytes:
    """The figure as PNG of a fixed palette, which holds every colour used here: a third of the size of `png`."""
    fig.set_dpi(dpi)
    canvas: Any = fig.canvas
    canvas.draw()
    image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    palette = Image.new("P", (1, 1))
    palette.putpalette(palette_bytes())
    out = io.BytesIO()
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(out, format="png", compress_level=9)
    return out.getvalue()


@cache
def palette_bytes() -> bytes:
    """Each colour pure and in tints towards white, for soft edges and bands; and greys from black to white."""
    shares = {colour: (1, 0.75, 0.5, 0.3, 0.18) for colour in COLOURS if colour != "#000000"} | {
        BAR: (1,),
        EDGE: (1, 0.5),
    }
    tints = [[1 - s * (1 - part) for part in to_rgb(colour)] for colour, several in shares.items() for s in several]
    greys = [[level / 31] * 3 for level in range(32)]
    return bytes(round(255 * part) for rgb in (*tints, *greys) for part in rgb)


def svg(fig: Figure) -> str:
    """The figure as SVG: no date, the same bytes for the same figure."""
    out = io.StringIO()
    fig.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()
