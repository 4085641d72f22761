"""A table as HTML: a fragment for a page, and a page of its own that needs nothing from anywhere.

Names and texts from runs are data: each is cleaned and escaped, and no attribute but `title` and `data-v` holds any.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from analysis.output.view import REACHED, Shown, view
from analysis.tables.table import Table
from analysis.text import clean

TABLE_CSS = """
.runs { overflow-x: auto; margin: 0 0 1rem; }
.runs table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
.runs th, .runs td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #8884; }
.runs thead th { vertical-align: bottom; border-bottom: 1px solid currentColor; }
.runs .groups th { font-weight: normal; border-bottom: 1px solid #8888; }
.runs .first { border-left: 1px solid #8888; }
.runs .num { text-align: right; }
.runs tbody th { font-weight: normal; font-family: ui-monospace, monospace; }
.runs tbody tr:hover { background: #8882; }
.runs .best { font-weight: bold; text-decoration: underline; }
.runs thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  width: 100%; text-align: inherit; }
.runs thead button:focus-visible { outline: 2px solid; outline-offset: 2px; }
.runs [aria-sort=ascending] button::after { content: " \\25B2"; }
.runs [aria-sort=descending] button::after { content: " \\25BC"; }
.runs-filter { margin: 0 0 .5rem; padding: .25rem .5rem; font: inherit; max-width: 100%; }
.runs-notes { font-size: .9em; padding-left: 1.2em; overflow-wrap: anywhere; }
@media print { .runs { overflow: visible; font-size: 7pt; } .runs-filter { display: none; } }
"""

TABLE_JS = """
document.querySelectorAll(".runs table").forEach(table => {
  const body = table.tBodies[0], heads = [...table.querySelectorAll("thead th[aria-sort]")];
  const key = (row, at) => row.cells[at].dataset.v;
  heads.forEach((head, at) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === "none" ? "high" in head.dataset : head.ariaSort === "ascending";
    const isNumber = head.classList.contains("num");
    heads.forEach(other => { other.ariaSort = "none"; });
    head.ariaSort = down ? "descending" : "ascending";
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const x = key(a, at), y = key(b, at);
      if (x === "" || y === "") return (x === "") - (y === "");
      const by = isNumber ? x - y : x < y ? -1 : x > y ? 1 : 0;
      return down ? -by : by;
    });
    body.append(...rows);
  }));
  const filter = document.createElement("input");
  filter.type = "search"; filter.className = "runs-filter"; filter.placeholder = "filter rows";
  filter.setAttribute("aria-label", "filter rows");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
  table.parentElement.before(filter);
});
"""
"""Sorts by a header's button (click, Enter or blank), the best first where more is better; empty cells stay last."""


def html_table(table: Table, links: Mapping[str, str] | None = None) -> str:
    """The table and its notes as a fragment; the page has TABLE_CSS in a style and TABLE_JS in a script at its end.

    Args:
        links: an address for run ids (`#run-...` in a report).
    """
    shown = view(table)
    links = links or {}
    has_marks, starts, at = any(shown.marks), set(), 0
    groups = ["<th></th>"] if has_marks else []
    for name, span in shown.groups:
        if name:
            starts.add(at)
        side = " class=first" if name else ""
        groups.append(f"<th colspan={span}{side}>{text(name)}</th>")
        at += span
    heads = [head("", "level of the worst finding", "")] if has_marks else []
    heads += [
        head(c.name, c.column[1], kind(c, at in starts), c.higher_is_better) for at, c in enumerate(shown.columns)
    ]
    lines = [f"<tr class=groups>{''.join(groups)}</tr>", f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for row in range(len(table.frame)):
        parts = [f'<td data-v="{shown.marks[row]}">{shown.marks[row]}</td>'] if has_marks else []
        parts += [body(c, row, kind(c, at in starts), links) for at, c in enumerate(shown.columns)]
        lines.append(f"<tr>{''.join(parts)}</tr>")
    listed = "".join(f"<li>{text(note, 400)}</li>" for note in shown.remarks(best=False))
    return "\n".join(
        ['<div class="runs">', "<table>", "<thead>", *lines, "</tbody>", "</table>", "</div>"]
        + ([f'<ul class="runs-notes">{listed}</ul>'] if listed else [])
    )


def html_page(table: Table, title: str = "Runs") -> str:
    """A page of its own. Its policy forbids the browser to fetch anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    style = ":root { color-scheme: light dark; } body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem; }"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{style}{TABLE_CSS}</style>
</head>
<body>
{html_table(table)}
<script>{TABLE_JS}</script>
</body>
</html>"""


def kind(column: Shown, opens_group: bool) -> str:
    return " ".join((["num"] if column.is_number else []) + (["first"] if opens_group else []))


def head(name: str, whole: str, classes: str, high: bool = False) -> str:
    more = (f' class="{classes}"' if classes else "") + (" data-high" if high else "")
    button = f'<button type="button" title="{text(whole)}">{text(name) or "&nbsp;"}</button>'
    return f'<th scope="col" aria-sort="none"{more}>{button}</th>'


def body(column: Shown, row: int, classes: str, links: Mapping[str, str]) -> str:
    value, words = column.values[row], text(column.words[row])
    if row in column.best:
        classes = f"{classes} best".strip()
    if row in column.reached:
        words += f" {REACHED}"
    more = f' class="{classes}" ' if classes else " "
    if column.column == ("run", "run_id"):
        if value in links:
            words = f'<a href="{escape(links[value])}">{words}</a>'
        return f'<th scope="row"{more}data-v="{text(value)}">{words}</th>'
    return f'<td{more}data-v="{key(value)}">{words}</td>'


def key(value: Any) -> str:
    """What the script sorts by; empty for an empty cell."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, int | float) else text(value)


def text(value: object, longest: int = 60) -> str:
    return escape(clean(value, longest))
