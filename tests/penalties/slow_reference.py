"""Penalties computed the slow, obvious way: loops over pairs in float64, gradients by hand."""

import math


def ortho(W, f, *, threshold, competition="linear", tau=0.1, overlap="jaccard", reduction="sum"):
    """Value, gradient on W, number of competing pairs. W [d_sae][d_in], f [B][d_sae], lists of floats."""
    d_sae, n_tokens = len(W), len(f)
    active = [{t for t in range(n_tokens) if f[t][i] > 0} for i in range(d_sae)]
    value, pairs = 0.0, 0
    grad = [[0.0] * len(W[0]) for _ in W]
    for i in range(d_sae):
        for j in range(i + 1, d_sae):
            both = len(active[i] & active[j])
            if both == 0:
                continue
            n = (
                both
                / {
                    "jaccard": len(active[i] | active[j]),
                    "min": min(len(active[i]), len(active[j])),
                    "cosine": math.sqrt(len(active[i]) * len(active[j])),
                    "batch": n_tokens,
                }[overlap]
            )
            if competition == "linear":
                c = min(1.0, max(0.0, (n - threshold) / threshold))
            else:
                c = 1 / (1 + math.exp(-(n - threshold) / (tau * threshold)))
            if c == 0:
                continue
            pairs += 1
            dot = sum(a * b for a, b in zip(W[i], W[j], strict=True))
            value += c * abs(dot)
            sign = (dot > 0) - (dot < 0)
            for d in range(len(W[0])):
                grad[i][d] += c * sign * W[j][d]
                grad[j][d] += c * sign * W[i][d]
    divisor = {"sum": 1, "per_feature": d_sae, "mean": max(pairs, 1)}[reduction]
    return value / divisor, [[g / divisor for g in row] for row in grad], pairs
