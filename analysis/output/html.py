"""A table as HTML: a fragment for a page, and a page of its own that needs nothing from anywhere.

Names and texts from runs are data: each is cleaned and escaped, and no attribute but `title` and `data-v` holds any.
"""

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from analysis.output.view import REACHED, view
from analysis.tables.table import Table
from analysis.text import clean

HERE = Path(__file__).parent
TABLE_CSS, TABLE_JS = ((HERE / name).read_text(encoding="utf-8") for name in ("table.css", "table.js"))


def rendered(template: Path, **content: Any) -> str:
    """A template of jinja2 as HTML: all text is escaped but what the template calls safe."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"clean": clean, "key": key}
    return environment.get_template(template.name).render(content).rstrip("\n")


def html_table(table: Table, links: Mapping[str, str] | None = None) -> str:
    """The table and its notes as a fragment; the page has TABLE_CSS in a style and TABLE_JS in a script at its end.

    Args:
        links: an address for run ids (`#run-...` in a report).
    """
    shown = view(table)
    first = accumulate((span for _, span in shown.groups), initial=0)
    opening = {at for at, (name, _) in zip(first, shown.groups, strict=False) if name}
    classes = [" ".join(["num"] * c.is_number + ["first"] * (at in opening)) for at, c in enumerate(shown.columns)]
    return rendered(
        HERE / "table.html.jinja",
        shown=shown,
        classes=classes,
        links=links or {},
        n_rows=len(table.frame),
        reached=f" {REACHED}",
        remarks=shown.remarks(best=False),
    )


def html_page(table: Table) -> str:
    """A page of its own. Its policy forbids the browser to fetch anything."""
    return rendered(HERE / "page.html.jinja", table=html_table(table), css=TABLE_CSS, script=TABLE_JS)


def key(value: Any) -> str:
    """What the script sorts by; empty for an empty cell."""
    if value is None or value != value:
        return ""
    return repr(float(value)) if isinstance(value, int | float) else clean(value)
