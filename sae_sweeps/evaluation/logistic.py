"""scikit-learn's logistic regression on a few columns."""

from functools import cache
from typing import Any

import numpy as np


@cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def fitted(x_nK: np.ndarray, labels_n: np.ndarray, **options: Any) -> Any:
    """A LogisticRegression fitted to x [n, K] and labels [n].

    On one thread: for a handful of weights the others of the BLAS would wait for work, busily, at ten times the cost.
    """
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(**options)
    with _libraries().limit(limits=1, user_api="blas"):
        return probe.fit(x_nK, labels_n)
