"""Files of the evaluation `features` made from given activations, without a model."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sae_sweeps.storage.files import written_whole

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a&amp;b", "\n", "\x1b[31m", "é")
"""Some of the tokens' texts."""
BINS = 64


def random_activations(n: int = 12, context: int = 8, d_sae: int = 10, seed: int = 0) -> np.ndarray:
    """Sparse activations [n, context, d_sae], float32, none at the first token of a context."""
    draw = np.random.default_rng(seed)
    f_NLF = draw.random((n, context, d_sae)) * (draw.random((n, context, d_sae)) < 0.3) * 4
    f_NLF[:, 0] = 0
    return f_NLF.astype(np.float32)


def write_features(folder: Path, f_NLF: np.ndarray, decoder: np.ndarray | None = None, **about: Any) -> Path:
    """evals/features.npz of a run folder for these activations; its decoder rows are random where none are given."""
    n, context, d_sae = f_NLF.shape
    draw = np.random.default_rng(1)
    tokens = draw.integers(1, 40, (n, context))
    tokens[:, 0] = 0
    flat = f_NLF.reshape(-1, d_sae)
    fires = flat > 0
    if decoder is None:
        decoder = draw.standard_normal((d_sae, 6))
    decoder = decoder / np.linalg.norm(decoder, axis=1, keepdims=True)
    before, after = 3, 2

    def around(places: np.ndarray) -> np.ndarray:
        there = places[..., None] + np.arange(-before, after + 1)
        inside = (places[..., None] >= 0) & (there // context == places[..., None] // context)
        features = np.arange(d_sae)[None, :, None]
        return np.where(inside, flat[np.clip(there, 0, len(flat) - 1), features], 0).astype(np.float32)

    top = np.full((4, d_sae), -1)
    drawn = np.full((10, d_sae), -1)
    for j in range(d_sae):
        best = f_NLF[..., j].argmax(1) + np.arange(n) * context
        best = best[flat[best, j] > 0]
        best = best[np.argsort(-flat[best, j], kind="stable")][: len(top)]
        top[: len(best), j] = best
        some = draw.permutation(fires[:, j].nonzero()[0])[: len(drawn)]
        drawn[: len(some), j] = some[np.argsort(-flat[some, j])]
    largest = flat.max(0)
    end = np.where(largest > 0, 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1))) + 1), 0)
    histogram = [np.histogram(flat[fires[:, j], j], BINS, (0, end[j] or 1))[0] for j in range(d_sae)]
    both = fires.T.astype(float) @ fires
    overlap = both / np.maximum(fires.sum(0)[:, None] + fires.sum(0) - both, 1)
    cosine = decoder @ decoder.T
    for one in (overlap, cosine):
        np.fill_diagonal(one, 0)
    nearest = {
        name: np.argsort(-np.abs(one), 1, kind="stable")[:, :3]
        for name, one in (("overlap", overlap), ("cosine", cosine))
    }
    labels = np.arange(n).repeat(context) % 2
    row, feature = fires.nonzero()
    logits = draw.random((4, d_sae, 3)).astype(np.float32)
    arrays = {
        "tokens": tokens.astype(np.int32), "n_tokens": np.array(n * (context - 1)), "n_active": fires.sum(0),
        "n_contexts": (f_NLF > 0).any(1).sum(0), "total": flat.sum(0, dtype=np.float64),
        "histogram": np.array(histogram, np.int32), "end": end,
        "label_tokens": np.array([(labels == one).sum() for one in (0, 1)]),
        "label_active": np.stack([fires[labels == one].sum(0) for one in (0, 1)], 1),
        "top_place": top.astype(np.int32), "top_around": around(top),
        "drawn_place": drawn.astype(np.int32), "drawn_around": around(drawn),
        "raised": draw.integers(0, 40, (d_sae, 3)), "raised_logits": logits[0],
        "lowered": draw.integers(0, 40, (d_sae, 3)), "lowered_logits": -logits[1],
        "cosine_nearest": nearest["cosine"].astype(np.int32),
        "cosine": np.take_along_axis(cosine, nearest["cosine"], 1).astype(np.float32),
        "overlap_nearest": np.where(np.take_along_axis(overlap, nearest["overlap"], 1) > 0, nearest["overlap"], -1),
        "overlap": np.take_along_axis(overlap, nearest["overlap"], 1).astype(np.float32),
        "decoder": decoder.astype(np.float16), "kept_contexts": np.arange(n, dtype=np.int32),
        "kept_count": fires.sum(1).astype(np.int32), "kept_feature": feature.astype(np.int32),
        "kept_value": flat[row, feature],
    }  # fmt: skip
    texts = dict(enumerate(["<bos>", *HOSTILE, *(f" w{i}" for i in range(40))]))
    content = {
        "format": 1, "model": "toy", "hook": "blocks.1.hook_resid_post", "layer": 1, "text": "words",
        "text_digest": "t", "special": [0], "before": before, "after": after, "labels": ["<b>plain</b>", "other"],
        "logits": "By its own norm.", "run": folder.name, "architecture": "topk", "d_sae": d_sae, "d_in": 6, "k": 3,
        "token_texts": texts, **about,
    }  # fmt: skip
    with written_whole(folder / "evals" / "features.npz") as file:
        np.savez_compressed(file, about=np.frombuffer(json.dumps(content).encode(), np.uint8), **arrays)
    return folder
