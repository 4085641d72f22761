"""Two SAEs' features matched one to one, and what became of each feature of one in the other.

Both read the same activations. Decoder rows are compared by cosine, activations by Pearson's correlation over tokens
that both files have whole, A(i) are the tokens on which i fires:

    shared      its partner by decoder rows has a cosine of SAME or more with it; or, where neither of two features has
                such a partner, they are partners by activations with a correlation of SAME or more
    dead        otherwise: fires on none of the tokens
    rare        otherwise: fires on fewer than FEWEST of them
    split       otherwise: two or more features of the other fire inside it (|A(i) n A(j)| >= INSIDE |A(j)|, and
                >= PART |A(i)|), and together on INSIDE of its tokens or more
    merged      otherwise: inside one feature of the other (|A(i) n A(j)| >= INSIDE |A(i)|, and LIFT times what
                chance gives) that is shared with none, and at least one more such feature is inside that one
    absorbed    otherwise: inside one feature of the other
    lost        otherwise: inside no feature of the other; seen from the other side, new
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.features.stored import Stored
from sae_sweeps.errors import DataError

SAME = 0.7
INSIDE = 0.6
PART = 0.1
LIFT = 2.0
FEWEST = 10
LEAST = 0.5
"""Features that are less alike are no partners."""
CANDIDATES = 16
"""Of each feature on either side, the most similar ones among which the best assignment is found."""
TILE = 1024
"""Features compared with all others at a time."""
CLASSES = ("shared", "split", "merged", "absorbed", "lost", "rare", "dead")


@dataclass
class Matching:
    """One to one, by one measure."""

    partner: np.ndarray
    """Of each feature of the first SAE, its feature in the second; -1 for none."""
    similarity: np.ndarray
    """Of the two; nan for none."""

    def inverse(self, n: int) -> Matching:
        """The same seen from the second SAE, which has n features."""
        partner, similarity = np.full(n, -1), np.full(n, np.nan)
        has = self.partner >= 0
        partner[self.partner[has]], similarity[self.partner[has]] = has.nonzero()[0], self.similarity[has]
        return Matching(partner, similarity)


@dataclass
class Fate:
    """What became of the features of one SAE in the other."""

    kind: np.ndarray
    """One of CLASSES for each feature."""
    others: dict[int, list[int]] = field(default_factory=dict)
    """The features of the other that it concerns: its partner, parts, or the one that it is inside of."""

    def count(self, kind: str) -> int:
        return int((self.kind == kind).sum())


@dataclass
class Compared:
    """Two SAEs' features compared; of each pair the first SAE's, then the second's."""

    runs: tuple[Stored, Stored]
    n_tokens: int
    """Tokens that both files have whole."""
    by_decoder: Matching
    by_activations: Matching
    fates: tuple[Fate, Fate]
    active: tuple[Any, Any]
    """Activations on these tokens, sparse [T, F]."""

    @property
    def agree(self) -> int:
        """Features that both measures match to the same one."""
        return int(((self.by_decoder.partner >= 0) & (self.by_decoder.partner == self.by_activations.partner)).sum())


def compare(first: Stored, second: Stored) -> Compared:
    """Match the features of two SAEs. Raises DataError where they read other activations or other text."""
    n = min(len(first["tokens"]), len(second["tokens"]))
    differing = [key for key in ("model", "hook", "d_in") if first.about[key] != second.about[key]]
    if not np.array_equal(first["tokens"][:n], second["tokens"][:n]):
        differing.append("text")
    if differing:
        a, b = (str(one.about[differing[0]]) for one in (first, second))
        values = f"{a} and {b}" if a != b else f"other tokens of {a}"
        raise DataError(
            f"{first.run} and {second.run} differ in {differing[0]} ({values}), so that their features cannot be "
            "matched; give runs of one model, layer and text."
        )
    a, b = common_activations(first, second)
    cosine = matched(decoder_candidates(first, second), first.d_sae, second.d_sae)
    correlation = matched(activation_candidates(a, b), first.d_sae, second.d_sae)
    fates = fates_of(a, b, cosine, correlation)
    return Compared((first, second), a.shape[0], cosine, correlation, fates, (a, b))


def common_activations(first: Stored, second: Stored) -> tuple[Any, Any]:
    """Activations of both on the tokens that both files have whole, sparse [T, F]."""
    common = np.intersect1d(first["kept_contexts"], second["kept_contexts"])
    return activations(first, common), activations(second, common)


def activations(one: Stored, contexts: np.ndarray) -> Any:
    """Its activations on the tokens of some of the contexts that it has whole, sparse [T, F], float32."""
    from scipy.sparse import csr_matrix

    starts = np.concatenate([[0], one["kept_count"].cumsum(dtype=np.int64)])
    whole = csr_matrix((one["kept_value"], one["kept_feature"], starts), (len(starts) - 1, one.d_sae))
    context = one["tokens"].shape[1]
    rows = np.searchsorted(one["kept_contexts"], contexts)[:, None] * context + np.arange(context)
    return whole[rows.ravel()]


Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Features of the first and of the second, and how alike they are [pairs]."""


def decoder_candidates(first: Stored, second: Stored) -> Candidates:
    a, b = (one["decoder"].astype(np.float32) for one in (first, second))
    return both_ways(lambda rows: a[rows] @ b.T, lambda rows: b[rows] @ a.T, len(a), len(b))


def activation_candidates(a: Any, b: Any) -> Candidates:
    """By Pearson's correlation; 0 where one of the two does not vary."""
    a, b = a.tocsc(), b.tocsc()
    (mean_a, inverse_a), (mean_b, inverse_b) = standardised(a), standardised(b)

    def of_a(rows: slice) -> np.ndarray:
        products = (a[:, rows].T @ b).toarray() / a.shape[0]
        return (products - np.outer(mean_a[rows], mean_b)) * np.outer(inverse_a[rows], inverse_b)

    def of_b(rows: slice) -> np.ndarray:
        products = (b[:, rows].T @ a).toarray() / a.shape[0]
        return (products - np.outer(mean_b[rows], mean_a)) * np.outer(inverse_b[rows], inverse_a)

    return both_ways(of_a, of_b, a.shape[1], b.shape[1])


def standardised(f: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and inverse standard deviation of each column [F]; 0 for one that does not vary."""
    mean = np.asarray(f.mean(0)).ravel().astype(np.float64)
    variance = np.asarray(f.multiply(f).mean(0)).ravel() - mean**2
    return mean, np.where(variance > 1e-12, 1 / np.sqrt(np.maximum(variance, 1e-12)), 0)


def both_ways(of_first: Any, of_second: Any, n_first: int, n_second: int) -> Candidates:
    """The CANDIDATES most alike of each feature on either side; of_first: rows -> similarities [rows, n_second]."""
    i, j, value = [], [], []
    for similarity, n, m, swapped in ((of_first, n_first, n_second, False), (of_second, n_second, n_first, True)):
        for start in range(0, n, TILE):
            tile = np.asarray(similarity(slice(start, min(start + TILE, n))))
            k = min(CANDIDATES, m)
            best = np.argpartition(-tile, k - 1, axis=1)[:, :k]
            own = np.repeat(np.arange(start, start + len(tile)), k)
            pair = (best.ravel(), own) if swapped else (own, best.ravel())
            i.append(pair[0])
            j.append(pair[1])
            value.append(np.take_along_axis(tile, best, 1).ravel())
    code = np.concatenate(i).astype(np.int64) * n_second + np.concatenate(j)
    code, at = np.unique(code, return_index=True)
    return code // n_second, code % n_second, np.concatenate(value)[at]


def matched(candidates: Candidates, n_first: int, n_second: int) -> Matching:
    """The assignment of largest summed similarity among the candidates that are alike to LEAST or more.

    Blocks of features that no candidate connects are assigned one by one, by scipy's solver.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    i, j, value = (one[candidates[2] >= LEAST] for one in candidates)
    graph = coo_matrix((value, (i, n_first + j)), (n_first + n_second,) * 2)
    block = connected_components(graph, directed=False)[1][i]
    order = np.argsort(block, kind="stable")
    i, j, value, block = i[order], j[order], value[order], block[order]
    _, start, count = np.unique(block, return_index=True, return_counts=True)
    partner, similarity = np.full(n_first, -1), np.full(n_first, np.nan)
    alone = start[count == 1]
    partner[i[alone]], similarity[i[alone]] = j[alone], value[alone]
    for first, n in zip(start[count > 1].tolist(), count[count > 1].tolist(), strict=True):
        edges = slice(first, first + n)
        rows, row = np.unique(i[edges], return_inverse=True)
        columns, column = np.unique(j[edges], return_inverse=True)
        gain = np.zeros((len(rows), len(columns)))
        gain[row, column] = value[edges]
        chosen = linear_sum_assignment(gain, maximize=True)
        real = gain[chosen] > 0
        mine, its = rows[chosen[0][real]], columns[chosen[1][real]]
        partner[mine], similarity[mine] = its, gain[chosen][real]
    return Matching(partner, similarity)


def fates_of(a: Any, b: Any, cosine: Matching, correlation: Matching) -> tuple[Fate, Fate]:
    """Of the features of both SAEs."""
    fires = tuple((one > 0).astype(np.float32) for one in (a, b))
    back = cosine.inverse(b.shape[1]), correlation.inverse(b.shape[1])
    partners = shared_with(cosine, correlation), shared_with(*back)
    return (
        fate(fires[0], fires[1], partners[0], partners[1] >= 0),
        fate(fires[1], fires[0], partners[1], partners[0] >= 0),
    )


def shared_with(cosine: Matching, correlation: Matching) -> np.ndarray:
    """The feature that each is shared with; -1 for none."""
    by_cosine = np.where(cosine.similarity >= SAME, cosine.partner, -1)
    neither = (by_cosine < 0) & ~np.isin(correlation.partner, by_cosine)
    return np.where(neither & (correlation.similarity >= SAME), correlation.partner, by_cosine)


def fate(fires: Any, other: Any, partner: np.ndarray, other_is_shared: np.ndarray) -> Fate:
    """What became of each feature. fires, other: 0 and 1, sparse [T, F]."""
    from scipy.sparse import csr_matrix

    n, n_other = (np.asarray(one.sum(0)).ravel() for one in (fires, other))
    found = Fate(np.full(len(n), "lost", dtype="<U8"))
    found.kind[n < FEWEST] = "rare"
    found.kind[n == 0] = "dead"
    found.kind[partner >= 0] = "shared"
    found.others = {int(i): [int(partner[i])] for i in (partner >= 0).nonzero()[0]}
    open_ = (found.kind == "lost").nonzero()[0]
    inside: dict[int, int] = {}
    for start in range(0, len(open_), TILE):
        rows = open_[start : start + TILE]
        both = (fires[:, rows].T @ other).toarray()
        share, of_other = both / n[rows, None], both / np.maximum(n_other, 1)
        parts = (of_other >= INSIDE) & (share >= PART)
        union = other @ csr_matrix(parts.T.astype(np.float32)) > 0
        covered = np.asarray(fires[:, rows].multiply(union).sum(0)).ravel()
        chance = n_other / fires.shape[0]
        around = np.where(share >= LIFT * chance, share, 0)
        for row, i in enumerate(rows.tolist()):
            own = parts[row].nonzero()[0]
            if len(own) > 1 and covered[row] >= INSIDE * n[i]:
                found.kind[i] = "split"
                found.others[i] = own[np.argsort(-both[row, own])].tolist()
            elif around[row].max(initial=0) >= INSIDE:
                inside[i] = int(around[row].argmax())
    takes = np.bincount(list(inside.values()), minlength=len(n_other))
    for i, j in inside.items():
        found.kind[i] = "merged" if takes[j] > 1 and not other_is_shared[j] else "absorbed"
        found.others[i] = [j]
    return found
