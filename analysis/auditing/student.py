"""Student's t without scipy, whose import takes as long as a thousand runs to judge."""

import math

import numpy as np

TERMS = 200
PRECISION = 1e-14


def two_sided(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P(|T| > t) for t >= 0 and any degrees of freedom above 0 [n]; nan where either is.

    This is I(x; df/2, 1/2) at x = df / (df + t^2): the regularised incomplete beta function by its continued fraction
    (Lentz's form), turned round where it would converge slowly.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        turned = df / (df + t**2) > (df + 2) / (df + 5)
        a, b = np.where(turned, 0.5, df / 2), np.where(turned, df / 2, 0.5)
        x = np.where(turned, t**2, df) / (df + t**2)
        c, d = np.ones_like(x), 1 / (1 - (a + b) * x / (a + 1))
        fraction = d
        for m in range(1, TERMS):
            even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
            odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
            for term in (even, odd):
                c, d = 1 + term / c, 1 / (1 + term * d)
                fraction = fraction * c * d
            if not np.any(np.abs(c * d - 1) > PRECISION):
                break
        log_beta = np.array([math.lgamma(half) + math.lgamma(0.5) - math.lgamma(half + 0.5) for half in df / 2])
        p = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta) / a * fraction
    return np.where(turned, 1 - p, p)
