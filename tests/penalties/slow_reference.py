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


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def divided(value, reduction, d_sae, n_pairs):
    return value / {"sum": 1, "per_feature": d_sae, "mean": max(n_pairs, 1)}[reduction]


def squared_cosines(W, pairs, *, reduction="sum", factor=1.0):
    """factor * reduction over the given pairs of (w_i . w_j)^2, and its gradient on W."""
    value, grad = 0.0, [[0.0] * len(W[0]) for _ in W]
    for i, j in pairs:
        product = dot(W[i], W[j])
        value += product**2
        for d in range(len(W[0])):
            grad[i][d] += 2 * product * W[j][d]
            grad[j][d] += 2 * product * W[i][d]
    scale = factor * divided(1.0, reduction, len(W), len(pairs))
    return value * scale, [[g * scale for g in row] for row in grad]


def all_pairs(n):
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def ortsae(W, chunks):
    """Value and gradient on W for given chunks of feature numbers; rows of any norm."""
    norm = [math.sqrt(dot(w, w)) for w in W]
    value, grad = 0.0, [[0.0] * len(W[0]) for _ in W]
    for chunk in chunks:
        for i in chunk:
            others = [j for j in chunk if j != i]
            if not others:
                continue
            cosine, j = max(((dot(W[i], W[j]) / (norm[i] * norm[j]), -j) for j in others), key=lambda pair: pair)
            j = -j
            if cosine <= 0:
                continue
            value += cosine**2 / len(W)
            for a, b in ((i, j), (j, i)):
                for d in range(len(W[0])):
                    slope = W[b][d] / (norm[a] * norm[b]) - cosine * W[a][d] / norm[a] ** 2
                    grad[a][d] += 2 * cosine * slope / len(W)
    return value, grad


def decorrelation(f, *, reduction="sum", active_fraction=1.0, variance_floor=1e-6):
    """Value, gradient on f [B][d_sae], number of features that vary."""
    n_tokens, d_sae = len(f), len(f[0])
    fires = [sum(f[t][i] > 0 for t in range(n_tokens)) for i in range(d_sae)]
    n_kept = max(1, math.ceil(active_fraction * d_sae))
    kept = sorted(sorted(range(d_sae), key=lambda i: (-fires[i], i))[:n_kept])
    centred, spread = {}, {}
    for i in kept:
        mean = sum(f[t][i] for t in range(n_tokens)) / n_tokens
        deviation = [f[t][i] - mean for t in range(n_tokens)]
        if dot(deviation, deviation) / n_tokens > variance_floor:
            centred[i], spread[i] = deviation, math.sqrt(dot(deviation, deviation))
    value, grad = 0.0, [[0.0] * d_sae for _ in range(n_tokens)]
    names = sorted(centred)
    pairs = [(i, j) for i in names for j in names if i < j]
    for i, j in pairs:
        corr = dot(centred[i], centred[j]) / (spread[i] * spread[j])
        value += corr**2
        for a, b in ((i, j), (j, i)):
            for t in range(n_tokens):
                slope = centred[b][t] / (spread[a] * spread[b]) - corr * centred[a][t] / spread[a] ** 2
                grad[t][a] += 2 * corr * slope
    scale = divided(1.0, reduction, d_sae, len(pairs))
    return value * scale, [[g * scale for g in row] for row in grad], len(names)
