"""A table in each of FORMATS. A new format is one function here and its entry in FORMATS."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.metrics import DIFFERENCES, STATISTICS
from analysis.output.html import html_page
from analysis.output.view import Shown, View, labels, view
from analysis.tables.marks import best_rows, reached_rows
from analysis.tables.table import Table
from analysis.text import clean, csv_cell, latex_cell, markdown_cell, wrapped
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import without_nonfinite

ENDINGS = {
    ".txt": "text", ".md": "markdown", ".csv": "csv", ".json": "json", ".svg": "svg", ".tex": "latex", ".html": "html",
    ".htm": "html",
}  # fmt: skip
"""File extension -> format."""


def render(table: Table, format: str = "text", width: int | None = None, color: bool = False) -> str:
    """A table in one of FORMATS, without a final newline.

    Text, markdown, latex and html show the metrics of FIRST unless columns were chosen; csv and json have all at full
    precision.

    Args:
        width: columns of the terminal; a default text table drops its last metrics until it fits, and lists them.
        color: mark by terminal codes too (text).
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format}: there is no such format; choose one of {', '.join(FORMATS)}.")
    return FORMATS[format](table, width, color).rstrip("\n")


def format_of(path: str | Path) -> str:
    """The format for a file's extension. Raises ConfigError for an unknown one."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(f"-o {path}: {ending or 'no ending'} names no format; end it in {', '.join(ENDINGS)}.")
    return ENDINGS[ending]


# The formats ---------------------------------------------------------------------------------------------------------

GAP = "  "
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


def text(table: Table, width: int | None, color: bool) -> str:
    shown = view(table)
    left_out: list[str] = []
    if width is not None and not table.columns_chosen and not table.pivot:
        can_go = {"metrics", "difference", "config"} if shown.has_titles else {"metrics", "difference"}
        while total_width(shown) > width and shown.columns[-1].column[0] in can_go:
            left_out.insert(0, shown.columns.pop().name)
    missing = [f"left out for want of room: {', '.join(left_out)}"] if left_out else []
    return "\n".join([*draw(shown, color), *shown.remarks(left_out=missing)])


def total_width(shown: View) -> int:
    return sum(map(column_width, shown.columns)) + len(GAP) * (len(shown.columns) - 1) + 2 * shown.has_marks


def column_width(column: Shown) -> int:
    from rich.cells import cell_len

    heads = [*wrapped(column.name).split("\n"), ""]
    longest = max(map(cell_len, column.words), default=0) + mark_width(column)
    return max(longest, *map(cell_len, heads))


def mark_width(column: Shown) -> int:
    return (1 if column.best else 0) + (1 if column.reached else 0)


def draw(shown: View, color: bool = False) -> list[str]:
    """The lines of the grid: groups, headers, a rule and one line per row; columns fit their widest cell."""
    from rich.cells import cell_len

    def aligned(words: str, column: Shown, width: int) -> str:
        room = " " * (width - cell_len(words))
        return room + words if column.is_number else words + room

    # a group's name may be wider than its columns: its last one then grows
    widths = [column_width(column) for column in shown.columns]
    start, groups = 0, []
    for name, span in shown.groups:
        own = sum(widths[start : start + span]) + len(GAP) * (span - 1)
        widths[start + span - 1] += max(0, cell_len(name) - own)
        own = max(own, cell_len(name))
        rest = own - cell_len(name) - 1
        groups.append(name + (f" {'─' * rest}" if rest > 1 and name else " " * (rest + 1)))
        start += span
    margin = "  " if shown.has_marks else ""
    heads = [wrapped(column.name).split("\n") for column in shown.columns]
    height = max(map(len, heads), default=0)
    grid = [groups] if any(name for name, _ in shown.groups) else []
    for line in range(height):
        parts = ([""] * (height - len(head)) + head for head in heads)
        grid.append([aligned(p[line], c, w) for p, c, w in zip(parts, shown.columns, widths, strict=True)])
    lines = [(margin + GAP.join(parts)).rstrip() for parts in grid]
    rule = "─" * (len(margin) + sum(widths) + len(GAP) * (len(widths) - 1))
    lines.append(f"{DIM}{rule}{PLAIN}" if color else rule)

    filled = []
    for column, width in zip(shown.columns, widths, strict=True):
        slot = mark_width(column)
        marks = [column.marks(row) for row in range(len(column.words))] if slot else [""] * len(column.words)
        pad = [f"{BOLD}{m}{PLAIN}{' ' * (slot - len(m))}" if color and m else m.ljust(slot) for m in marks]
        filled.append([aligned(w, column, width - slot) + m for w, m in zip(column.words, pad, strict=True)])
    for row, cells in enumerate(zip(*filled, strict=True)):
        mark = f"{shown.marks[row]:<2}" if margin else ""
        lines.append((mark + GAP.join(cells)).rstrip())
    return lines


def svg(table: Table, width: int | None, color: bool) -> str:
    """The text table as an SVG image, without references to fonts or addresses on the network."""
    import re

    from rich.console import Console
    from rich.text import Text

    lines = Text(text(table, width, color=False))
    widest = max((line.cell_len for line in lines.split()), default=80)
    console = Console(file=io.StringIO(), record=True, width=widest, highlight=False)
    console.print(lines)
    picture = console.export_svg(title="python -m analysis table")
    return re.sub(r"@font-face \{[^}]*\}", "", picture).replace("Fira Code", "monospace")


def markdown(table: Table, width: int | None, color: bool) -> str:
    """A Markdown table; a group's name is in the header of its first column."""
    shown = view(table)
    content, head, rule = [], [], []
    if shown.has_marks:
        content.append(shown.marks)
        head.append("")
        rule.append("---")
    before = ""
    for column in shown.columns:
        opens = column.group and column.group != before
        before = column.group
        head.append(markdown_cell(f"{column.group}: {column.name}" if opens else column.name))
        rule.append("---:" if column.column[0] in ("metrics", "difference") else "---")
        words = map(markdown_cell, column.words)
        marked = (word + (f" {sign}" if (sign := column.marks(row, best="")) else "") for row, word in enumerate(words))
        content.append([f"**{word}**" if row in column.best else word for row, word in enumerate(marked)])
    lines = ["| " + " | ".join(line) + " |" for line in (head, rule, *zip(*content, strict=True))]
    notes = [f"- {markdown_cell(line)}" for line in shown.remarks(best=False)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def latex(table: Table, width: int | None, color: bool) -> str:
    r"""A tabular for booktabs, the best in bold and a dagger where a target is reached; notes in small print below."""
    shown = view(table)
    aligns = "".join("r" if column.is_number else "l" for column in shown.columns)
    has_marks = shown.has_marks
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{{'l' if has_marks else ''}{aligns}}}", "\\toprule"]
    heads, rules, place = [""] if has_marks else [], [], 2 if has_marks else 1
    for name, span in shown.groups:
        heads.append(f"\\multicolumn{{{span}}}{{c}}{{{latex_cell(name)}}}")
        if name:
            rules.append(f"\\cmidrule(lr){{{place}-{place + span - 1}}}")
        place += span
    if rules:
        lines += [" & ".join(heads) + r" \\", " ".join(rules)]
    names = [latex_cell(column.name) for column in shown.columns]
    lines += [" & ".join([*([""] if has_marks else []), *names]) + r" \\", "\\midrule"]
    for row in range(len(table.frame)):
        parts = [latex_cell(shown.marks[row])] if has_marks else []
        for column in shown.columns:
            word = latex_cell(column.words[row])
            word = f"\\textbf{{{word}}}" if row in column.best else word
            parts.append(word + ("$^{\\dagger}$" if row in column.reached else ""))
        lines.append(" & ".join(parts) + r" \\")
    notes = [f"\\par{{\\footnotesize {latex_cell(clean(note, 400))}}}" for note in shown.remarks(best=False)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", *notes])


def csv(table: Table, width: int | None, color: bool) -> str:
    import csv

    frame = table.frame
    names = labels(frame.columns)
    file = io.StringIO()
    out = csv.writer(file, lineterminator="\n")
    out.writerow([csv_cell(names[column]) for column in frame.columns])
    out.writerows([csv_cell(value) for value in row] for row in frame.itertuples(index=False, name=None))
    return file.getvalue()


def to_json(table: Table, width: int | None, color: bool) -> str:
    """{"runs": [{run_id, ..., config: {}, metrics: {}}], "best": {metric: [run_id]}, "warnings": []}.

    Of aggregated runs a metric is {mean, std, n, ci_low, ci_high}; with a baseline each run has `differences`; a pivot
    has "rows" instead of "runs". Further: `reached` (targets), `marks`, `unfit`, `notes` and `target_fvu`.
    """
    frame, runs = table.frame, []
    has_spread = any(kind == "std" for kind, _ in frame.columns)
    for row in frame.itertuples(index=False, name=None):
        run: dict[str, Any] = {"run": {}, "config": {}, "metrics": {}}
        for (kind, name), value in zip(frame.columns, row, strict=True):
            if value != value:  # absent keys are left out
                continue
            value = str(value) if isinstance(value, Path) else value
            if kind in DIFFERENCES:
                part = {"difference": "value", "difference_low": "ci_low", "difference_high": "ci_high"}[kind]
                run.setdefault("differences", {}).setdefault(name, {})[part] = value
            elif kind in STATISTICS or (has_spread and kind == "metrics"):
                part = "mean" if kind == "metrics" else kind
                run["metrics"].setdefault(name, {})[part] = int(value) if kind == "n" else value
            else:
                run[kind][name] = value
        runs.append({**run.pop("run"), **run})
    content: dict[str, Any] = {"rows" if table.pivot else "runs": runs}
    for name, rows_of in (("best", best_rows), ("reached", reached_rows)):
        found = {column[1]: sorted(rows_of(table, column)) for column in frame.columns if column[0] == "metrics"}
        content[name] = {
            metric: [row if table.pivot else runs[row]["run_id"] for row in rows]
            for metric, rows in found.items()
            if rows
        }
    content["warnings"] = table.warnings
    more = {
        "notes": table.notes,
        "marks": table.levels,
        "target_fvu": table.target_fvu,
        "pivot": table.pivot and table.pivot.metric,
        "baseline": table.baseline,
        "folded": table.aggregated,
        "unfit": table.unfit,
    }
    content |= {name: value for name, value in more.items() if value}
    return json.dumps(without_nonfinite(content), indent=2, allow_nan=False)


def html(table: Table, width: int | None, color: bool) -> str:
    return html_page(table)


FORMATS: dict[str, Callable[[Table, int | None, bool], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": csv,
    "json": to_json,
    "svg": svg,
    "latex": latex,
    "html": html,
}
