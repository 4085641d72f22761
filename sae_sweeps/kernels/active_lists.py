"""Active tokens of each feature and active features of each token, as lists, on the CPU."""

# mypy: disable-error-code="no-untyped-def"
from typing import NamedTuple

import numpy as np

from sae_sweeps.kernels.counting_sort import Array, starts, transposed
from sae_sweeps.kernels.features import DenseFeatures, Features
from sae_sweeps.kernels.threads import compiled, over_blocks

ROWS = 64
"""Rows per block of work."""


class Lists(NamedTuple):
    """The tokens of a feature ascend; the features of a token keep their order in f."""

    feature_start: Array
    """[d_sae + 1]: the tokens of feature i are token[feature_start[i] : feature_start[i + 1]]."""
    token: Array
    token_start: Array
    """[B + 1]: the features of token t are feature[token_start[t] : token_start[t + 1]]."""
    feature: Array


def active_lists(f: Features, n_tokens: int) -> Lists:
    """Lists of the entries of f above 0."""
    if f.pairs is not None and bool((f.values > 0).all()):
        by_feature, _, tokens = f.pairs.transposed  # which the backward pass needs too
        feature = f.pairs.feature.numpy().astype(np.int32)
        return Lists(by_feature.numpy(), tokens.numpy().astype(np.int32), f.pairs.start.numpy(), feature)
    if isinstance(f, DenseFeatures):
        fires = (f.dense() > 0).numpy()
        start = starts(np.count_nonzero(fires, axis=1))
        feature = np.empty(start[-1], np.int32)
        over_blocks(lambda first, end: _fill(fires, start, feature, first, end), n_tokens, ROWS)
    else:
        tokens, features, values = f.listed()
        fires = (values > 0).numpy()
        start = starts(np.bincount(tokens.numpy()[fires], minlength=n_tokens))
        feature = features.numpy()[fires].astype(np.int32)
    feature_start, token, _ = transposed(start, feature, f.d_sae)
    token_start, feature, _ = transposed(feature_start, token, n_tokens)
    return Lists(feature_start, token, token_start, feature)


@compiled()
def _fill(fires, start, feature, first, end):
    """The features of tokens first .. end - 1, where fires [B, d_sae] is true."""
    for t in range(first, end):
        n = start[t]
        for i in range(fires.shape[1]):
            if fires[t, i]:
                feature[n] = i
                n += 1
