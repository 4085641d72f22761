"""What each feature fires on, and what its decoder row does to the logits: `evals/features.npz`.

`python -m analysis features` and `compare` make pages of it. One pass of the model over held-out text serves all SAEs
of a group. A place is `context * L + position`. F is d_sae, N x L the text, W = before + 1 + after:

    about               JSON (bytes): sizes, names, the text, how the logits were computed, the tokens as text
    tokens              [N, L]
    n_tokens            tokens that were read, special ones left out; of them each label has label_tokens [labels]
    n_active            tokens on which the feature fires (f > 0) [F]
    n_contexts          contexts in which it fires [F]
    total               sum of its activations [F]
    histogram, end      counts of its activations [F, BINS], in equal bins from 0 to its end [F]
    label_active        tokens of each label on which it fires [F, labels]
    top_*, drawn_*      examples [n, F]: the contexts in which it fires most, one token of each, strongest first; and
                        tokens drawn among all on which it fires, strongest first. `place` (-1: none), and activations
                        `around` [n, F, W], 0 at special tokens and outside the context
    raised, lowered     tokens whose logits its decoder row raises and lowers most [F, n], and `_logits`
    cosine_nearest      features of the largest |cosine| with it [F, n], and `cosine`
    overlap_nearest     features of the largest overlap [F, n], |A n B| / |A u B| of the tokens on which they fire;
                        -1 where fewer are ever active together; and `overlap`
    decoder             its decoder row at unit norm [F, d_in], float16
    kept_contexts       contexts [C] of which all activations are kept: every `stride`-th one
    kept_count          activations of each of their tokens [C * L]
    kept_feature, kept_value    the activations, token by token
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.activations.contexts import rows_of
from sae_sweeps.activations.text import roles
from sae_sweeps.architectures.batch import norms_of
from sae_sweeps.architectures.saelens import ExportedSAE
from sae_sweeps.config.evaluations import FEATURES_FORMAT, Evaluation, FeaturesConfig
from sae_sweeps.config.hooks import hook_name
from sae_sweeps.evaluation.batches import is_plain
from sae_sweeps.evaluation.examples import Histogram, Largest, draws
from sae_sweeps.evaluation.result import Numbers
from sae_sweeps.evaluation.shared import Shared
from sae_sweeps.evaluation.unembedded import METHOD, logit_effects
from sae_sweeps.storage.files import written_whole

FILE = "features.npz"
MOST_KEPT = 2**21
"""Most activations that are kept whole, for overlaps and for comparing SAEs."""
TILE = 1024
"""Features whose cosines or overlaps with all others are in memory together."""


def evaluate(saes: Mapping[str, ExportedSAE], shared: Shared, cfg: FeaturesConfig) -> Iterator[tuple[str, Numbers]]:
    """Write features.npz of each SAE."""
    data = replace(shared.data, kind="builtin_labelled") if shared.data.kind == "builtin" else shared.data
    contexts = list(islice(rows_of(data, "held_out", shared.lm), max(1, cfg.tokens // data.context)))
    tokens_NL = torch.from_numpy(np.stack([context.tokens_L for context in contexts])).long()
    role_NL = torch.from_numpy(np.stack([context.role_L for context in contexts]))
    text_NL = torch.arange(tokens_NL.shape[1]) < torch.tensor([[context.length] for context in contexts])
    names = roles(data)
    label_NL = torch.full_like(tokens_NL, -1)
    for number, role in enumerate(names):
        label_NL[role_NL == role] = number
    collected = collect(saes, shared, cfg, tokens_NL, text_NL, label_NL, len(names))
    about = about_text(shared, cfg, tokens_NL, list(names.values()))
    for name, sae in shared.each("features: logits and neighbours", saes):
        arrays = collected[name].arrays() | neighbours(sae, collected[name], cfg.nearest)
        effects = logit_effects(sae.weights["W_dec"], shared.lm, shared.layer, cfg.logits)
        if effects is not None:
            keys = ("raised", "raised_logits", "lowered", "lowered_logits")
            arrays |= dict(zip(keys, (effect.cpu().numpy() for effect in effects), strict=True))
        of_sae = {"run": name, "architecture": sae.architecture, "d_sae": sae.d_sae, "d_in": sae.d_in, "k": sae.k}
        write(shared.folders[name] / FILE, arrays | {"tokens": tokens_NL.int().numpy()}, about | of_sae, shared.lm)
        yield name, Numbers({})


class Collected:
    """What is kept of the features of one SAE."""

    def __init__(self, sae: ExportedSAE, context: int, n_labels: int, cfg: FeaturesConfig, seed: int):
        d_sae, device, width = sae.d_sae, sae.device, cfg.before + 1 + cfg.after
        self.sae, self.context, self.n_labels, self.cfg, self.seed = sae, context, n_labels, cfg, seed
        self.n_tokens = 0
        self.label_tokens = torch.zeros(n_labels, dtype=torch.int64, device=device)
        self.n_active = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.n_contexts = torch.zeros_like(self.n_active)
        self.total = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.label_active = torch.zeros(d_sae, n_labels, dtype=torch.int64, device=device)
        self.histogram = Histogram(d_sae, device)
        self.top = Largest(cfg.examples, d_sae, width, device)
        self.drawn = Largest(cfg.samples, d_sae, width, device)
        self.kept = Kept(d_sae)

    def add(self, x_nD: Tensor, at_n: Tensor, label_n: Tensor, first: int, n_contexts: int) -> None:
        """Add the activations at the places [n], ascending, of the contexts first .. first + n_contexts - 1."""
        d_sae, L = self.sae.d_sae, self.context
        self.n_tokens += len(at_n)
        self.label_tokens += torch.bincount(label_n[label_n >= 0], minlength=self.n_labels)
        row, feature, value = self.sae.features(x_nD).listed()
        positive = value > 0
        code, order = (at_n[row[positive]] * d_sae + feature[positive]).sort()
        value = value[positive][order]
        place, feature = code // d_sae, code % d_sae
        self.n_active += torch.bincount(feature, minlength=d_sae)
        self.total.index_add_(0, feature, value.double())
        self.histogram.add(feature, value)
        if self.n_labels:
            label = label_n[torch.searchsorted(at_n, place)]
            known = feature[label >= 0] * self.n_labels + label[label >= 0]
            self.label_active += torch.bincount(known, minlength=self.label_active.numel()).view_as(self.label_active)

        offset = torch.arange(-self.cfg.before, self.cfg.after + 1, device=place.device)

        def around(entry: Tensor) -> Tensor:
            """Activations of the entries' features around their places [m, W]."""
            shifted = place[entry, None] + offset
            wanted = shifted * d_sae + feature[entry, None]
            found = torch.searchsorted(code, wanted).clamp(max=len(code) - 1)
            inside = (shifted // L == place[entry, None] // L) & (code[found] == wanted)
            return torch.where(inside, value[found], 0)

        strongest = strongest_of_each((place // L - first) * d_sae + feature, value, n_contexts * d_sae)
        self.n_contexts += torch.bincount(feature[strongest], minlength=d_sae)
        self.top.add(
            feature[strongest], value[strongest].double(), place[strongest], lambda entry: around(strongest[entry])
        )
        self.drawn.add(feature, draws(place, feature, d_sae, self.seed), place, around)
        self.kept.add(place, feature, value, L, first, n_contexts)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file."""
        own = self.cfg.before
        order = self.drawn.around[..., own].argsort(dim=0, descending=True, stable=True)  # 0 where there is none
        drawn_place = self.drawn.place.gather(0, order)
        drawn_around = self.drawn.around.gather(0, order[..., None].expand(self.drawn.around.shape))
        found = {
            "n_tokens": torch.tensor(self.n_tokens), "label_tokens": self.label_tokens, "n_active": self.n_active,
            "n_contexts": self.n_contexts, "total": self.total,
            "histogram": self.histogram.counts.int(), "end": self.histogram.end, "label_active": self.label_active,
            "top_place": self.top.place.int(), "top_around": self.top.around,
            "drawn_place": drawn_place.int(), "drawn_around": drawn_around,
        }  # fmt: skip
        return {name: array.cpu().numpy() for name, array in found.items()} | self.kept.arrays(self.context)


class Kept:
    """All activations of every `stride`-th context: the stride doubles whenever they are more than MOST_KEPT."""

    def __init__(self, d_sae: int):
        self.stride, self.d_sae, self.n_contexts = 1, d_sae, 0
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        """Of each batch: context and token by place, feature, value; ordered by place."""

    def add(self, place: Tensor, feature: Tensor, value: Tensor, context: int, first: int, n_contexts: int) -> None:
        self.n_contexts = first + n_contexts
        of = place // context % self.stride == 0
        self.parts.append((place[of].cpu(), feature[of].int().cpu(), value[of].float().cpu()))
        while sum(len(part[0]) for part in self.parts) > MOST_KEPT and self.stride < self.n_contexts:
            self.stride *= 2
            self.parts = [
                tuple(one[part[0] // context % self.stride == 0] for one in part)  # type: ignore[misc]
                for part in self.parts
            ]

    def arrays(self, context: int) -> dict[str, np.ndarray]:
        place, feature, value = (torch.cat(one).numpy() for one in zip(*self.parts, strict=True))
        contexts = np.arange(0, self.n_contexts, self.stride)
        number = place // context // self.stride * context + place % context
        return {
            "kept_contexts": contexts.astype(np.int32),
            "kept_count": np.bincount(number, minlength=len(contexts) * context).astype(np.int32),
            "kept_feature": feature,
            "kept_value": value,
        }


def strongest_of_each(group: Tensor, value: Tensor, n_groups: int) -> Tensor:
    """Numbers of the entries of largest value > 0 in each group that has entries, the first of equal ones."""
    n = len(group)
    largest = value.new_zeros(n_groups).scatter_reduce(0, group, value, "amax")
    is_largest = (value == largest[group]).nonzero()[:, 0]
    first = is_largest.new_full((n_groups,), n).scatter_reduce(0, group[is_largest], is_largest, "amin")
    return first[first < n]


@torch.no_grad()
def collect(
    saes: Mapping[str, ExportedSAE], shared: Shared, cfg: FeaturesConfig,
    tokens_NL: Tensor, text_NL: Tensor, label_NL: Tensor, n_labels: int,
) -> dict[str, Collected]:  # fmt: skip
    """One pass over contexts [N, L] for all SAEs.

    Special tokens, those outside `text_NL` [N, L], and those beyond an SAE's norm limit are left out. label_NL: the
    label of each token, -1 for none.
    """
    lm, (n, context) = shared.lm, tokens_NL.shape
    out = {name: Collected(sae, context, n_labels, cfg, shared.cfg.seed) for name, sae in saes.items()}
    at_once = max(1, min(shared.cfg.llm_batch, shared.cfg.sae_batch // context))
    shared.begin("features", n, "context")
    for first in range(0, n, at_once):
        rows = slice(first, first + at_once)
        tokens_SL = tokens_NL[rows]
        used_SL = (is_plain(tokens_SL, lm.special_ids) & text_NL[rows]).to(lm.device)
        x_nD = lm.activations(tokens_SL, shared.layer)[used_SL]
        at_n = used_SL.flatten().nonzero()[:, 0] + first * context
        label_n = label_NL[rows].to(lm.device)[used_SL]
        for name, sae in saes.items():
            limit = sae.norm_limit if shared.cfg.exclude_outliers else None
            within = slice(None) if limit is None else norms_of(x_nD) <= limit
            out[name].add(x_nD[within], at_n[within], label_n[within], first, len(tokens_SL))
        shared.advance(len(tokens_SL))
    return out


@torch.no_grad()
def neighbours(sae: ExportedSAE, collected: Collected, n: int) -> dict[str, np.ndarray]:
    """The features nearest to each by |cosine| and by overlap, and the decoder rows at unit norm."""
    unit_FD = torch.nn.functional.normalize(sae.weights["W_dec"].float(), dim=1)
    n, cosine = min(n, len(unit_FD) - 1), []
    for start in range(0, len(unit_FD), TILE):
        tile = unit_FD[start : start + TILE] @ unit_FD.T
        tile.diagonal(start).zero_()
        nearest = tile.abs().topk(n).indices
        cosine.append((nearest, tile.gather(1, nearest)))
    found = {
        "cosine_nearest": torch.cat([part[0] for part in cosine]).int().cpu().numpy(),
        "cosine": torch.cat([part[1] for part in cosine]).cpu().numpy(),
        "decoder": unit_FD.half().cpu().numpy(),
    }
    return found | overlaps(collected, n)


def overlaps(collected: Collected, n: int) -> dict[str, np.ndarray]:
    """The features of largest overlap with each, over the tokens whose activations are kept."""
    from scipy.sparse import csr_matrix

    kept, d_sae = collected.kept.arrays(collected.context), collected.sae.d_sae
    starts = np.concatenate([[0], kept["kept_count"].cumsum()])
    active = csr_matrix((np.ones(starts[-1], np.float32), kept["kept_feature"], starts), (len(starts) - 1, d_sae))
    by_feature, count = active.T.tocsr(), np.bincount(kept["kept_feature"], minlength=d_sae)
    nearest, overlap = [], []
    for start in range(0, d_sae, TILE):
        both = (by_feature[start : start + TILE] @ active).toarray()
        both[np.arange(len(both)), start + np.arange(len(both))] = 0
        union = count[start : start + TILE, None] + count - both
        tile = both / np.maximum(union, 1)
        best = np.argpartition(-tile, n - 1, axis=1)[:, :n]
        value = np.take_along_axis(tile, best, 1)
        order = np.argsort(-value, axis=1, kind="stable")
        nearest.append(np.take_along_axis(best, order, 1))
        overlap.append(np.take_along_axis(value, order, 1))
    values = np.concatenate(overlap).astype(np.float32)
    return {"overlap_nearest": np.where(values > 0, np.concatenate(nearest), -1).astype(np.int32), "overlap": values}


def about_text(shared: Shared, cfg: FeaturesConfig, tokens_NL: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """What the file describes of the model and the text."""
    return {
        "format": FEATURES_FORMAT,
        "model": shared.model_name,
        "hook": hook_name(shared.layer),
        "layer": shared.layer.index,
        "text": shared.data.path or shared.data.name,
        "text_digest": hashlib.blake2b(tokens_NL.numpy().tobytes(), digest_size=8).hexdigest(),
        "special": sorted(shared.lm.special_ids),
        "before": cfg.before,
        "after": cfg.after,
        "labels": list(labels),
        "logits": METHOD,
    }


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Each token as text; by the vocabulary's own name where it is no whole character."""
    found = {}
    for number in ids:
        text = tokenizer.decode([number])
        found[number] = tokenizer.convert_ids_to_tokens(number) if "\N{REPLACEMENT CHARACTER}" in text else text
    return found


def write(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], lm: Any) -> None:
    """Write the file whole or not at all."""
    named = [arrays[key].ravel() for key in ("tokens", "raised", "lowered") if key in arrays]
    texts = token_texts(lm.tokenizer, np.unique(np.concatenate(named)).tolist())
    content = json.dumps({**about, "token_texts": texts}).encode()
    with written_whole(path) as file:
        np.savez_compressed(file, allow_pickle=False, about=np.frombuffer(content, np.uint8), **arrays)


EVALUATION = Evaluation("features", evaluate, reads=("seed", "exclude_outliers", "features"), file=FILE)
