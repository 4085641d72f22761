"""Features as data within a page: an overview of all, chunks of details that the page unpacks on demand, and the text.

A pack is the bytes of arrays one behind another, each with its least significant bytes first in one plane, then the
next bytes in another (like bytes compress better), deflated, in base64. `features.js` reads the same list of arrays.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.features.stored import Stored

CHUNK = 128
"""Features of a pack."""
FIFTHS = 5


@dataclass(frozen=True)
class Shown:
    """How many examples of each feature a page shows."""

    top: int
    of_each_fifth: int


SIZES = (Shown(20, 5), Shown(12, 4), Shown(10, 2), Shown(8, 1), Shown(5, 1), Shown(3, 1), Shown(1, 0))
"""Most wanted first."""


def pack(arrays: Sequence[np.ndarray]) -> str:
    """The arrays, of whole numbers or float32, as text."""
    planes = [a.reshape(-1, 1).view(np.uint8).T.tobytes() for a in map(np.ascontiguousarray, arrays) if a.size]
    return base64.b64encode(zlib.compress(b"".join(planes), 9)).decode()


def packed_run(one: Stored, shown: Shown, chunks: Sequence[int] | None = None) -> dict[str, Any]:
    """A run as the page has it; with `chunks` the details of these alone."""
    examples = Examples(one, shown)
    n_chunks = -(-one.d_sae // CHUNK)
    return {
        "run": one.run,
        "title": one.title,
        "about": {key: value for key, value in one.about.items() if key != "token_texts"},
        "text": one.about["text_digest"],
        "n_tokens": int(one["n_tokens"]),
        "label_tokens": one["label_tokens"].tolist(),
        "logits": int(one["raised"].shape[1]) if "raised" in one.arrays else 0,
        "nearest": one["cosine_nearest"].shape[1],
        "overview": overview(one),
        "chunks": [details(one, examples, n) for n in (range(n_chunks) if chunks is None else chunks)],
    }


def overview(one: Stored) -> str:
    f32, mean = np.float32, one["total"] / np.maximum(one["n_active"], 1)
    return pack(
        [
            one["n_active"].astype(np.uint32), one["n_contexts"].astype(np.uint32), one.largest.astype(f32),
            mean.astype(f32), one["cosine"][:, 0].astype(f32), one["overlap"][:, 0].astype(f32),
            one.label_information.astype(f32), one.best_label.astype(np.int32), one.peaks.astype(np.int32),
        ]
    )  # fmt: skip


class Examples:
    """The examples that a page shows, feature by feature: the strongest contexts, then some of each fifth."""

    def __init__(self, one: Stored, shown: Shown):
        n_drawn = (one["drawn_place"] >= 0).sum(0)
        rank = np.arange(len(one["drawn_place"]))[:, None]
        # ranks run from the strongest; of each fifth the first few
        fifth = np.where(rank < n_drawn, rank * FIFTHS // np.maximum(n_drawn, 1), FIFTHS)
        begins = -(-fifth * n_drawn // FIFTHS)
        drawn = (fifth < FIFTHS) & (rank - begins < shown.of_each_fifth)
        top = one["top_place"][: shown.top]
        self.kinds = (
            (top, one["top_around"][: shown.top], np.full(top.shape, FIFTHS)),
            (np.where(drawn, one["drawn_place"], -1), one["drawn_around"], fifth),
        )

    def of(self, features: slice) -> list[np.ndarray]:
        """Arrays of the examples of some features: numbers of both kinds, places, fifths, and activations."""
        places, arounds, counts, fifths = [], [], [], []
        for place, around, fifth in self.kinds:
            place = place[:, features].T
            kept = place >= 0
            counts.append(kept.sum(1))
            places.append((place, kept))
            arounds.append(around[:, features].transpose(1, 0, 2))
            fifths.append(fifth[:, features].T)
        kept = np.concatenate([kept for _, kept in places], 1)
        place = np.concatenate([place for place, _ in places], 1)[kept]
        around = np.concatenate(arounds, 1)[kept]
        nonzero = around != 0
        return [
            counts[0].astype(np.uint8), counts[1].astype(np.uint8), place.astype(np.uint32),
            np.concatenate(fifths, 1)[kept].astype(np.uint8), nonzero.sum(1).astype(np.uint16),
            nonzero.nonzero()[1].astype(np.uint16), around[nonzero].astype(np.float32),
        ]  # fmt: skip


def details(one: Stored, examples: Examples, number: int) -> str:
    """Everything that the page shows of CHUNK features."""
    some = slice(number * CHUNK, (number + 1) * CHUNK)
    arrays = [one["end"][some].astype(np.float32), one["histogram"][some].astype(np.uint32)]
    if "raised" in one.arrays:
        for name in ("raised", "lowered"):
            arrays += [one[name][some].astype(np.uint32), one[f"{name}_logits"][some].astype(np.float32)]
    for name in ("cosine", "overlap"):
        arrays += [one[f"{name}_nearest"][some].astype(np.int32), one[name][some].astype(np.float32)]
    arrays.append(one["label_active"][some].astype(np.uint32))
    return pack([*arrays, *examples.of(some)])


def packed_text(one: Stored) -> dict[str, Any]:
    """The text that the run's examples are from, and the tokens that the page names."""
    return {
        "context": one["tokens"].shape[1],
        "tokens": pack([one["tokens"].astype(np.uint32)]),
        "special": one.about["special"],
    }


def size_of(one: Stored, shown: Shown) -> float:
    """About how many bytes a run takes in a page: one chunk in eight is packed."""
    n_chunks = -(-one.d_sae // CHUNK)
    some = range(0, n_chunks, max(1, n_chunks // 8))
    part = packed_run(one, shown, some)
    return len(part["overview"]) + sum(map(len, part["chunks"])) * n_chunks / len(some)
