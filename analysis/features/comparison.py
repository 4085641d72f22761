"""Two runs' features beside each other, as the page of `compare` and the lines that it prints have it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from analysis.features import matching
from analysis.features.matching import CLASSES, Compared
from analysis.features.page import shown_token
from analysis.features.stored import Stored
from sae_sweeps.errors import DamagedFile
from sae_sweeps.storage.files import MissingFile, read_json
from sae_sweeps.storage.run_folder import RunFolder

ROWS = 60
"""Most rows of a table; the least alike, or the most active, come first."""
DEFINITIONS = ("SAME", "LEAST", "INSIDE", "PART", "LIFT", "FEWEST", "CANDIDATES")
"""Constants of `matching` that the page names."""
SEEN = {"lost": "new"}
"""What a class is called from the side of the second run."""


def comparison(found: Compared) -> dict[str, Any]:
    """What the page shows above the features."""
    a, b = found.runs
    return {
        "first": a.run,
        "second": b.run,
        "tokens": found.n_tokens,
        "definitions": {name: getattr(matching, name) for name in DEFINITIONS},
        "counts": counts(found),
        "measures": measures(found),
        "agree": found.agree,
        "tables": [table for kind in CLASSES[:-2] for side in (0, 1) if (table := table_of(found, kind, side))],
        "pairs": [pairs for side in (0, 1) if (pairs := competing(found, side))],
        "absorption": [absorbed(one) for one in (a, b)],
    }


def counts(found: Compared) -> list[dict[str, Any]]:
    sizes = [len(fate.kind) for fate in found.fates]
    return [
        {"kind": kind, "seen": SEEN.get(kind, kind), "n": [fate.count(kind) for fate in found.fates],
         "share": [fate.count(kind) / size for fate, size in zip(found.fates, sizes, strict=True)]}
        for kind in CLASSES
    ]  # fmt: skip


def measures(found: Compared) -> list[dict[str, Any]]:
    """The two assignments: how many features have a partner, and how alike partners are."""
    return [
        {"name": name, "n": int((one.partner >= 0).sum()), "mean": float(np.nanmean(one.similarity)),
         "median": float(np.nanmedian(one.similarity)), "same": int((one.similarity >= matching.SAME).sum())}
        for name, one in (("cosine of decoder rows", found.by_decoder), ("correlation", found.by_activations))
        if (one.partner >= 0).any()
    ]  # fmt: skip


def link(*features: tuple[Stored, Iterable[int]]) -> str:
    """The address within the page at which these features are side by side."""
    return "#feature=" + ",".join(f"{one.run}:{index}" for one, several in features for index in several)


def tokens(one: Stored, index: int) -> list[str]:
    """The tokens at which a feature fires most."""
    return [shown_token(one.token_texts[number]) for number in one.peaks[index].tolist() if number >= 0]


def named(one: Stored, index: int) -> dict[str, Any]:
    return {"index": index, "link": link((one, [index])), "tokens": tokens(one, index)}


def table_of(found: Compared, kind: str, side: int) -> dict[str, Any] | None:
    """The features of one run that have this fate in the other."""
    if kind == "shared" and side:
        return None  # the same pairs
    fate, one, other = found.fates[side], found.runs[side], found.runs[1 - side]
    which = (fate.kind == kind).nonzero()[0]
    if not len(which):
        return None
    alike = found.by_decoder if side == 0 else found.by_decoder.inverse(one.d_sae)
    related = found.by_activations if side == 0 else found.by_activations.inverse(one.d_sae)
    order = np.argsort(alike.similarity[which] if kind == "shared" else -one.density[which], kind="stable")
    rows = [
        {
            "own": named(one, i),
            "density": one.density[i],
            "others": [named(other, j) for j in fate.others.get(i, [])[:4]],
            "cosine": alike.similarity[i],
            "correlation": related.similarity[i],
            "link": link((one, [i]), (other, fate.others.get(i, [])[:3])),
        }
        for i in which[order][:ROWS].tolist()
    ]
    kind = kind if side == 0 else SEEN.get(kind, kind)
    return {"kind": kind, "of": one.run, "in": other.run, "n": len(which), "rows": rows}


def competing(found: Compared, side: int) -> dict[str, Any] | None:
    """The pairs that a run's penalty on competing features recorded: when they were chosen, now, and in the other."""
    one, other = found.runs[side], found.runs[1 - side]
    first = recorded(one)
    if first is None:
        return None
    fate = found.fates[side]
    f, g = found.active[side], found.active[1 - side]
    rows, means = [], []
    for n in sorted((n for n, c in enumerate(first["c"]) if c > 0), key=lambda n: -first["c"][n]):
        i, j = first["pairs"][n]
        partners = [fate.others[k][0] for k in (i, j) if fate.kind[k] == "shared"]
        own, its = measured(one, f, i, j), measured(other, g, *partners) if len(partners) == 2 else None
        if its is not None:
            means.append([own["overlap"], its["overlap"], abs(own["cosine"]), abs(its["cosine"])])
        rows.append(
            {
                "pair": [named(one, i), named(one, j)],
                "chosen": {"overlap": first["overlap"][n], "c": first["c"][n], "cosine": first["abs_cosine"][n]},
                "own": own,
                "partners": [named(other, k) for k in partners],
                "fates": [str(fate.kind[k]) for k in (i, j)],
                "other": its,
                "link": link((one, [i, j]), (other, partners)),
            }
        )
    if not rows:
        return None
    mean = np.mean(means, 0).tolist() if means else []
    means_of = {"overlap": mean[:2], "cosine": mean[2:]} if mean else {}
    return {"of": one.run, "in": other.run, "step": first["step"], "rows": rows, "means": means_of, "n": len(means)}


def recorded(one: Stored) -> dict[str, Any] | None:
    """The first record of the monitor `competition`, of the step at which pairs were chosen; None without one."""
    folder = RunFolder(one.folder)
    rows = folder.unchanged(folder.monitors).rows()
    return next((row for row in rows if row.get("monitor") == "competition"), None)


def measured(one: Stored, f: Any, i: int, j: int) -> dict[str, float]:
    """Overlap of two features over the tokens, and the cosine of their decoder rows."""
    a, b = (np.asarray(f[:, k].todense()).ravel() > 0 for k in (i, j))
    rows = one["decoder"][[i, j]].astype(np.float64)
    return {"overlap": float((a & b).sum() / max((a | b).sum(), 1)), "cosine": float(rows[0] @ rows[1])}


def absorbed(one: Stored) -> dict[str, Any]:
    """First letters by example: the letter's features, the words on which they are silent, and what fires instead."""
    path = one.folder / "evals" / "absorption.json"
    mend = f"sae-sweeps evaluate {one.folder} eval=core eval.evaluations=[absorption]"
    try:
        note = read_json(path)["eval_result_unstructured"]["sae_sweeps"]
    except MissingFile:
        return {"of": one.run, "rows": [], "why": f"it is not measured; `{mend}` does it"}
    except (KeyError, TypeError):
        raise DamagedFile(f"{path} is damaged (it has no results); remove it, and evaluate absorption again.") from None
    if "absorbed" not in note:
        return {
            "of": one.run,
            "rows": [],
            "why": f"the result is older than examples; remove {path.stem}.* and `{mend}`",
        }
    by_feature: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for example in note["absorbed"]:
        by_feature.setdefault((example["letter"], example["absorber"]), []).append(example)
    rows = [
        {
            "letter": letter,
            "features": [named(one, i) for i in some[0]["features"][:3]],
            "words": [shown_token(example["word"]) for example in some],
            "absorber": named(one, absorber),
            "cosine": some[0]["cosine"],
            "share": float(np.mean([example["share"] for example in some])),
            "link": link((one, [*some[0]["features"][:2], absorber])),
        }
        for (letter, absorber), some in by_feature.items()
    ]
    return {"of": one.run, "rows": rows, "why": "; ".join(note.get("warnings") or []) or "no word is absorbed wholly"}


def plural(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def lines(found: dict[str, Any]) -> list[str]:
    """The comparison in words, for a terminal."""
    a, b = found["first"], found["second"]
    wide = max(20, 5 + max(map(len, (a, b))))
    out = [f"features of {a} and {b}, on {found['tokens']:,} tokens", f"{'':<10}{f'of {a}':>{wide}}{f'of {b}':>{wide}}"]
    for row in found["counts"]:
        name = row["kind"] if row["seen"] == row["kind"] else f"{row['kind']}, {row['seen']}"
        cells = [f"{n:,} ({share:.1%})" for n, share in zip(row["n"], row["share"], strict=True)]
        out.append(f"{name:<10}" + "".join(f"{cell:>{wide}}" for cell in cells))
    for one in found["measures"]:
        same = f"{one['same']:,} of {matching.SAME:g} or more"
        out.append(f"matched by {one['name']}: {one['n']:,}, mean {one['mean']:.3f}, {same}")
    out.append(f"both match {found['agree']:,} features alike")
    for pairs in found["pairs"]:
        out.append(f"{plural(len(pairs['rows']), 'pair')} competed in {pairs['of']} at step {pairs['step']}")
        for key, (own, other) in pairs["means"].items():
            name = "|cosine|" if key == "cosine" else key
            out.append(f"  mean {name} of {pairs['n']}: {own:.3f}, in {pairs['in']} {other:.3f}")
    for one in found["absorption"]:
        words = sum(len(row["words"]) for row in one["rows"])
        out.append(f"absorbed first letters in {one['of']}: " + (plural(words, "word") if words else one["why"]))
    return out
