"""Figures to hover over, by plotly, which the page then carries: parallel coordinates, fronts and curves."""

import html
import json
from typing import Any

import numpy as np

from analysis.columns import differing
from analysis.metrics import FIRST
from analysis.output.view import labels
from analysis.plots.outcomes import FRONTS
from analysis.plots.study import Study
from analysis.plots.style import COLOURS
from analysis.text import clean
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import without_nonfinite

CURVES = (("held_out_fvu", "fvu, held-out text"), ("loss", "total loss"))
DASHES = ("solid", "dash", "dot", "dashdot")
AXES = 12
"""Of the parallel coordinates, at most."""

DRAW = """
for (const one of JSON.parse(document.getElementById("charts").textContent))
  Plotly.newPlot(one.id, one.data, one.layout, {responsive: true, displaylogo: false, showLink: false,
    modeBarButtonsToRemove: ["toImage"]});
"""


def charts(study: Study) -> str:
    """Markup of the figures, with plotly and their data. Raises ConfigError where plotly is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError(
            "--interactive needs plotly, an optional extra; install it with pip install 'sae-sweeps[interactive]'."
        ) from None
    figures = [one for one in (coordinates(study), *fronts(study), *curves(study)) if one is not None]
    data = json.dumps(without_nonfinite(figures), allow_nan=False).replace("<", "\\u003c")
    places = "\n".join(f'<div id="{one["id"]}" class="chart"></div>' for one in figures)
    library = get_plotlyjs().replace("</script", "<\\/script")
    return (
        f"{places}\n<script>{library}</script>\n"
        f'<script type="application/json" id="charts">{data}</script>\n<script>{DRAW}</script>'
    )


def words(value: object, longest: int = 60) -> str:
    """Text of a run for plotly, which takes some tags in texts for markup."""
    return html.escape(clean(value, longest), quote=False)


def layout(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, "height": 420, "margin": {"l": 60, "r": 20, "t": 70, "b": 50}, **more}


def coordinates(study: Study) -> dict[str, Any] | None:
    """Keys that differ, then metrics; a line for each run, coloured by fvu. Words are numbers with ticks."""
    full = study.full
    keys = differing(full)
    columns = [*keys[: AXES // 2], *(("metrics", name) for name in FIRST if ("metrics", name) in full.columns)][:AXES]
    names, axes = labels(columns), []
    for column in columns:
        values = [None if v != v else v for v in full[column]]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values if v is not None):
            numbers = [float("nan") if v is None else float(v) for v in values]
            if len({v for v in numbers if v == v}) > 1:
                axes.append({"label": words(names[column], 24), "values": numbers})
        else:
            seen = list(dict.fromkeys(words(v, 24) for v in values))
            ticks = list(range(len(seen)))
            numbers = [float(seen.index(words(v, 24))) for v in values]
            axes.append({"label": words(names[column], 24), "values": numbers, "tickvals": ticks, "ticktext": seen})
    if len(axes) < 2:
        return None
    colour = [float(v) for v in full["metrics", "fvu"]] if ("metrics", "fvu") in full.columns else [0.0] * len(full)
    line = {"color": colour, "colorscale": "Cividis", "showscale": True, "colorbar": {"title": {"text": "fvu"}}}
    data = [{"type": "parcoords", "dimensions": axes, "line": line}]
    return {"id": "chart-coordinates", "data": data, "layout": layout("Keys and metrics of every run")}


def fronts(study: Study) -> list[dict[str, Any]]:
    found = []
    for name, title in FRONTS:
        points = [(variant, row) for variant in study.variants for row in variant.rows]
        columns = [("metrics", "l0"), ("metrics", name)]
        if any(column not in study.full.columns for column in columns):
            continue
        x, y = ([float(study.full[column].iloc[row]) for _, row in points] for column in columns)
        texts = [f"{words(variant.label)}<br>{words(study.full['run', 'run_id'].iloc[row])}" for variant, row in points]
        hover = f"%{{text}}<br>L0 %{{x:.4g}}, {name} %{{y:.4g}}<extra></extra>"
        data = [{"type": "scatter", "mode": "markers", "x": x, "y": y, "text": texts, "hovertemplate": hover,
                 "marker": {"size": 9, "color": COLOURS[0]}}]  # fmt: skip
        axes = {"xaxis": {"title": {"text": "L0"}}, "yaxis": {"title": {"text": name}}}
        found.append({"id": f"chart-{name}", "data": data, "layout": layout(f"L0 against {title}", **axes)})
    return found


def curves(study: Study) -> list[dict[str, Any]]:
    found = []
    for name, title in CURVES:
        data = []
        for number, variant in enumerate(study.followed):
            if curve := study.curve(variant, name):
                shape = {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)], "width": 1.5}
                y = np.round(curve[1].mean(0), 6).tolist()
                label = words(variant.label, 40)
                hover = f"{label}<br>step %{{x}}: %{{y:.4g}}<extra></extra>"
                points = {"x": curve[0].tolist(), "y": y}
                data.append({"type": "scatter", "mode": "lines", **points, "name": label, "line": shape}
                            | {"hovertemplate": hover})  # fmt: skip
        if data:
            axes = {"xaxis": {"title": {"text": "training step"}}, "yaxis": {"title": {"text": title}}}
            found.append({"id": f"chart-{name}", "data": data, "layout": layout(title, **axes)})
    return found
