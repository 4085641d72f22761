"""The page about the features of one or several runs: one file that fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.features.packed import SIZES, Shown, packed_run, packed_text, size_of
from analysis.features.stored import Stored
from analysis.output.html import rendered
from analysis.text import clean

HERE = Path(__file__).parent
LIMIT = 14_500_000
"""Bytes that a page should stay below: where runs are too large for it, fewer examples of each feature are shown."""
OWN = 120_000
"""Bytes of a page without its data, and some more."""


def page(runs: Sequence[Stored], title: str, comparison: Mapping[str, Any] | None = None) -> str:
    """The page about the features of the runs; with `comparison` that of `analysis.features.comparison` above them."""
    texts: dict[str, dict[str, Any]] = {}
    for one in runs:
        digest = one.about["text_digest"]
        if digest not in texts:
            texts[digest] = packed_text(one) | {"strings": {}}
        texts[digest]["strings"] |= {number: shown_token(token) for number, token in one.token_texts.items()}
    shown = shown_of(runs, len(embedded(texts)))
    content = {"runs": [packed_run(one, shown) for one in runs], "texts": texts}
    style, script = ((HERE / f"features.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return rendered(
        HERE / "features.html.jinja",
        title=clean(title, 120),
        runs=[described(one) for one in runs],
        shown=shown,
        kept=runs[0]["top_place"].shape[0],
        comparison=comparison,
        data=embedded(content),
        style=style,
        script=script,
    )


def shown_of(runs: Sequence[Stored], n_text: int) -> Shown:
    """As many examples as fit into LIMIT beside a text of so many bytes."""
    room = LIMIT - OWN - n_text
    return next((shown for shown in SIZES if sum(size_of(one, shown) for one in runs) < room), SIZES[-1])


def embedded(content: Any) -> str:
    """JSON for a script element, which no string in it can end."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def shown_token(token: str) -> str:
    """A token as it is shown: its line breaks and tabs are seen, and no control character is left."""
    visible = token.replace("\n", "↵").replace("\t", "→").replace("\r", "␍")
    return "".join(letter if letter.isprintable() else "·" for letter in visible)


def described(one: Stored) -> dict[str, Any]:
    """What the page's head has of a run, in words."""
    alive = int((one["n_active"] > 0).sum())
    return {
        "run": clean(one.run, 40),
        "title": clean(one.title, 120),
        "what": f"{one.d_sae:,} features ({one.about['architecture']}) at {one.about['hook']} of {one.about['model']}",
        "read": f"{int(one['n_tokens']):,} held-out tokens of {one.about['text']}",
        "dead": f"{one.d_sae - alive:,} never fire there",
        "logits": one.about["logits"] if "raised" in one.arrays else None,
    }
