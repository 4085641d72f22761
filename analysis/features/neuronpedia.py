"""Features as SAEDashboard's JSON for Neuronpedia: `batch-N.json`, which its `neuronpedia_export` turns into an upload.

The fields are those of its NeuronpediaDashboardBatch and NeuronpediaDashboardFeature; what is not measured here
(alignment with neurons, correlations, histograms of logits, weights of heads) has their default, an empty list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from analysis.features.packed import FIFTHS, Examples, Shown
from analysis.features.stored import Stored
from sae_sweeps.storage.files import write_json

BATCH = 128
"""Features of a file."""
EVERYTHING = Shown(255, 255)
NOT_MEASURED = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist",
)  # fmt: skip
DIGITS = 3
"""Of numbers, as SAEDashboard rounds them."""


def write_batches(one: Stored, folder: Path) -> int:
    """Write the files; their number."""
    examples = Examples(one, EVERYTHING)
    starts = range(0, one.d_sae, BATCH)
    for number, start in enumerate(starts):
        some = range(start, min(start + BATCH, one.d_sae))
        content = {"model_id": one.about["model"], "layer": one.about["layer"], "sae_set": one.run}
        write_json(folder / f"batch-{number}.json", content | {"features": [feature(one, examples, j) for j in some]})
    return len(starts)


def feature(one: Stored, examples: Examples, index: int) -> dict[str, Any]:
    """One feature by SAEDashboard's names."""
    counts, end = one["histogram"][index], float(one["end"][index])
    used = int(np.flatnonzero(counts).max(initial=-1)) + 1
    bars = (np.arange(used) + 0.5) * end / len(counts)
    return {
        "feature_index": index,
        **{name: [] for name in NOT_MEASURED},
        **{f"{sign}_str": tokens(one, name, index) for sign, name in (("neg", "lowered"), ("pos", "raised"))},
        **{f"{sign}_values": logits(one, name, index) for sign, name in (("neg", "lowered"), ("pos", "raised"))},
        "frac_nonzero": float(one.density[index]),
        "freq_hist_data_bar_values": rounded(bars),
        "freq_hist_data_bar_heights": counts[:used].tolist(),
        "n_prompts_total": len(one["tokens"]),
        "n_tokens_in_prompt": one["tokens"].shape[1],
        "dataset": one.about["text"],
        "activations": activations(one, examples, index),
    }


def tokens(one: Stored, name: str, index: int) -> list[str]:
    return [one.token_texts[number] for number in one[name][index].tolist()] if name in one.arrays else []


def logits(one: Stored, name: str, index: int) -> list[float]:
    return rounded(one[f"{name}_logits"][index]) if name in one.arrays else []


def activations(one: Stored, examples: Examples, index: int) -> list[dict[str, Any]]:
    """Its examples: the strongest contexts in a bin from -1 to the largest activation, as SAEDashboard marks them, then
    those drawn, in a bin from the least to the largest activation of their fifth."""
    _, _, places, fifths, n_values, offsets, values = examples.of(slice(index, index + 1))
    before, context = one.about["before"], one["tokens"].shape[1]
    dense = np.zeros((len(places), before + 1 + one.about["after"]))
    dense[np.repeat(np.arange(len(places)), n_values), offsets] = values
    found = []
    for number, (place, fifth) in enumerate(zip(places.astype(int), fifths, strict=True)):
        within = dense[fifths == fifth, before]
        start = max(place - before, place // context * context)
        stop = min(place + one.about["after"] + 1, (place // context + 1) * context)
        ids = one["tokens"].ravel()[start:stop].tolist()
        some = dense[number, start - (place - before) :][: len(ids)]
        top = fifth == FIFTHS
        found.append(
            {
                "bin_min": -1 if top else float(within.min()),
                "bin_max": float(one.largest[index]) if top else float(within.max()),
                "bin_contains": -1 if top else 1 / FIFTHS,
                "tokens": [one.token_texts[number] for number in ids],
                "values": rounded(some),
            }
        )
    return found


def rounded(values: np.ndarray) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
