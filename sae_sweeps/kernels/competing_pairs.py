"""Features by rank, and the pairs of them that may compete, counted by compiled loops on the CPU.

The rank of a feature is its place in the order of how often they are active, the most often first. Each pair (i, j),
j < i, is looked for at i, among the features of i's tokens that come before it. Where two features cannot overlap
enough because one is active so much more often, their pair is not looked at: the ranks that remain are a range, and the
features of a token are in order.
"""

# mypy: disable-error-code="no-untyped-def"
from typing import NamedTuple

import numpy as np

from sae_sweeps.kernels.active_lists import Lists
from sae_sweeps.kernels.competition import Competition
from sae_sweeps.kernels.counting_sort import Array, starts, transposed
from sae_sweeps.kernels.threads import compiled

MARGIN = 1e-5
"""Relative distance below the threshold from which an overlap is below it whatever the rounding."""
DIVISION = {"error_model": "numpy"}
"""No check for division by 0: where one occurs, its result is not used."""
OVERLAPS = ("jaccard", "min", "cosine", "batch")


class Rule(NamedTuple):
    """A `Competition` for compiled code; all numbers in the dtype of the weights."""

    overlap: int
    """Index in OVERLAPS."""
    linear: bool
    t: np.floating
    tau: np.floating
    low: np.floating
    """Overlap below which c_ij is certainly 0."""
    n_tokens: np.floating


class Ranked(NamedTuple):
    """The P active entries of f, features by rank."""

    number: Array
    """Feature of each rank [d_sae]."""
    n_active: Array
    """Tokens on which each is active [d_sae], falling, in the dtype of the weights."""
    start: Array
    """[d_sae + 1]: the entries of feature i, by token, are start[i] .. start[i + 1] - 1."""
    feature: Array
    """Feature of each entry by token, then feature [P]: the places."""
    near: Array
    """For each entry [P], the first place of its token with a feature that its own may compete with, up to ..."""
    place: Array
    """... its own place."""
    n_looked: Array
    """Features, with repetitions, that each looks at [d_sae]."""
    n_most: Array
    """Features that each may compete with, at most [d_sae]."""


def rule_of(competition: Competition, n_tokens: int, dtype: np.dtype[np.floating]) -> Rule:
    """The competition of features over n_tokens tokens, with weights of this dtype."""
    linear, t = competition.form == "linear", competition.threshold
    t, tau, low, tokens = np.array([t, competition.tau, (1 - MARGIN) * t * linear, n_tokens], dtype)
    return Rule(OVERLAPS.index(competition.overlap), linear, t, tau, low, tokens)


def ranked(lists: Lists, rule: Rule) -> Ranked:
    """The features of the lists by rank; of equally frequent ones the lower number comes first."""
    n_active = np.diff(lists.feature_start)
    number = np.argsort(-n_active, kind="stable")
    n, start, token = n_active[number].astype(rule.t.dtype), starts(n_active[number]), np.empty_like(lists.token)
    _reorder(lists.feature_start, lists.token, number, start, token)
    token_start, feature, entry = transposed(start, token, len(lists.token_start) - 1)
    near, place = np.empty_like(entry), np.empty_like(entry)
    place[entry] = np.arange(len(entry), dtype=entry.dtype)
    n_looked, n_most = np.empty(len(n), np.int64), np.empty(len(n), np.int64)
    _reach(start, token, token_start, feature, place, n, rule, near, n_looked, n_most)
    return Ranked(number, n, start, feature, near, place, n_looked, n_most)


@compiled()
def _reorder(old_start, old_token, number, start, token):
    for i in range(len(number)):
        token[start[i] : start[i + 1]] = old_token[old_start[number[i]] : old_start[number[i] + 1]]


@compiled(**DIVISION)
def _too_rare(n_i, n_j, rule):
    """Whether features active on n_i <= n_j tokens overlap by less than `rule.low` even if i is active only with j."""
    if rule.overlap == 0:
        return n_i < rule.low * n_j
    if rule.overlap == 2:
        return n_i < rule.low * rule.low * n_j
    return rule.overlap == 3 and n_i < rule.low * rule.n_tokens


@compiled()
def _reach(start, token, token_start, feature, place, n_active, rule, near, n_looked, n_most):
    at, least = token_start[:-1].copy(), 0
    for i in range(len(n_active)):
        while least < i and _too_rare(n_active[i], n_active[least], rule):
            least += 1
        n_looked[i] = 0
        for p in range(start[i], start[i + 1]):
            q = at[token[p]]
            while feature[q] < least:
                q += 1
            at[token[p]] = near[p] = q
            n_looked[i] += place[p] - q
        n_most[i] = min(n_looked[i], i - least)


@compiled(**DIVISION)
def least_common(n_i, rule):
    """Tokens, at least 1, that a feature active on n_i tokens shares with one that is active as often or more often if
    their overlap is not below `rule.low`."""
    if rule.overlap == 0:
        n = 2 * n_i * rule.low / (1 + rule.low)
    elif rule.overlap == 3:
        n = rule.n_tokens * rule.low
    else:
        n = n_i * rule.low
    return max(np.int32(np.ceil(n)), 1)


@compiled()
def count(r, i, least, n_common, met):
    """Add the tokens that features before i share with i to `n_common`; list those that share `least` in `met`."""
    n_met = 0
    for p in range(r.start[i], r.start[i + 1]):
        for q in range(r.near[p], r.place[p]):
            j = r.feature[q]
            n_common[j] += 1
            met[n_met] = j  # stays where the number below grows: no branch, which would be predicted wrongly
            n_met += n_common[j] == least
    return n_met


@compiled()
def forget(r, i, n_common):
    """Set what `count` added to 0."""
    if 4 * r.n_looked[i] > i:
        n_common[:i] = 0
    else:
        for p in range(r.start[i], r.start[i + 1]):
            for q in range(r.near[p], r.place[p]):
                n_common[r.feature[q]] = 0


@compiled(**DIVISION)
def weigh(n_both, n_i, n_j, rule, c):
    """c_ij of one feature with others [n], step by step as in `Competition`; for those that it meets."""
    zero, one = rule.t - rule.t, rule.t / rule.t
    if rule.overlap == 0:
        for x in range(len(c)):
            c[x] = n_both[x] / (n_i + n_j[x] - n_both[x])
    elif rule.overlap == 1:
        for x in range(len(c)):
            c[x] = n_both[x] / min(n_i, n_j[x])
    elif rule.overlap == 2:
        for x in range(len(c)):
            c[x] = n_both[x] / np.sqrt(n_i * n_j[x])
    else:
        for x in range(len(c)):
            c[x] = n_both[x] / rule.n_tokens
    if rule.linear:
        for x in range(len(c)):
            c[x] = min(max((c[x] - rule.t) / rule.t, zero), one)
    else:
        for x in range(len(c)):
            c[x] = one / (one + np.exp(-((c[x] - rule.t) / (rule.tau * rule.t))))
