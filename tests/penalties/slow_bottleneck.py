"""The bottleneck's terms the slow, obvious way: loops in float64, gradients by hand, lists of floats."""

import math

from slow_contrastive import info_nce


def energies(f, group, n_groups):
    """E [B][G], group[i] the group of feature i."""
    return [
        [math.sqrt(sum(v * v for v, g in zip(row, group, strict=True) if g == wanted)) for wanted in range(n_groups)]
        for row in f
    ]


def on_features(dE, f, group, n_groups):
    """Gradient on f from the gradient on the energies."""
    E = energies(f, group, n_groups)
    return [
        [dE[t][group[i]] * f[t][i] / E[t][group[i]] if E[t][group[i]] > 0 else 0.0 for i in range(len(group))]
        for t in range(len(f))
    ]


def mutual_information(E, floor):
    """MI of each pair [G][G], and a function (gradient on MI) -> gradient on E."""
    n, n_groups = len(E), len(E[0])
    mean = [sum(row[g] for row in E) / n for g in range(n_groups)]
    squares = [sum((row[g] - mean[g]) ** 2 for row in E) for g in range(n_groups)]
    overall = sum(v * v for row in E for v in row) / n_groups
    varies = [s > floor * overall for s in squares]
    u = [[(E[t][g] - mean[g]) / math.sqrt(squares[g]) if varies[g] else 0.0 for g in range(n_groups)] for t in range(n)]
    rho = [[sum(row[g] * row[h] for row in u) for h in range(n_groups)] for g in range(n_groups)]
    mi = [
        [0.0 if g == h else -0.5 * math.log(1 - min(rho[g][h] ** 2, 0.9999)) for h in range(n_groups)]
        for g in range(n_groups)
    ]

    def back(dmi):
        dE = [[0.0] * n_groups for _ in E]
        for g in range(n_groups):
            for h in range(n_groups):
                r = rho[g][h]
                if g == h or r * r > 0.9999 or not (varies[g] and varies[h]):
                    continue
                drho = dmi[g][h] * r / (1 - r * r)
                for t in range(n):
                    dE[t][g] += drho * (u[t][h] - r * u[t][g]) / math.sqrt(squares[g])
                    dE[t][h] += drho * (u[t][g] - r * u[t][h]) / math.sqrt(squares[h])
        return dE

    return mi, back


def mi_term(E, earlier, window, floor):
    """mean_{g<h} MI over the last `window` rows of [earlier, E], and its gradient on E."""
    rows = [*earlier, *E][-window:]
    new = min(len(E), window)
    mi, back = mutual_information(rows, floor)
    n_groups = len(E[0])
    n_pairs = n_groups * (n_groups - 1) / 2
    value = sum(mi[g][h] for g in range(n_groups) for h in range(g + 1, n_groups)) / n_pairs
    share = [[1 / n_pairs if g < h else 0.0 for h in range(n_groups)] for g in range(n_groups)]
    dE = back(share)[len(rows) - new :]
    return value, [[0.0] * n_groups for _ in range(len(E) - new)] + dE


def between_groups(f, group, temperature):
    """InfoNCE of the features' columns over the batch, those of one group alike, and its gradient on f."""
    alive = [i for i in range(len(group)) if math.sqrt(sum(row[i] ** 2 for row in f)) > 1e-6]
    columns = [[row[i] for row in f] for i in alive]
    positives = [[b for b, j in enumerate(alive) if j != i and group[i] == group[j]] for i in alive]
    value, dcolumns = info_nce(columns, positives, temperature) if alive else (0.0, [])
    df = [[0.0] * len(group) for _ in f]
    for column, i in zip(dcolumns, alive, strict=True):
        for t, slope in enumerate(column):
            df[t][i] = slope
    return value, df


def bottleneck(
    f, W_enc, W_dec, group, n_groups, positives, earlier, window, floor, weights, temperature, contrast="tokens"
):
    """Terms, weighted sum, gradients on f, W_enc and W_dec. weights: mi, group_lasso, l2, contrastive."""
    E = energies(f, group, n_groups)
    sizes = [sum(g == wanted for g in group) for wanted in range(n_groups)]
    mi, dmi = mi_term(E, earlier, window, floor)
    lasso = sum(math.sqrt(s) * e for row in E for s, e in zip(sizes, row, strict=True)) / len(E)
    nce, dnce = info_nce(E, positives, temperature)
    of_features = [[0.0] * len(group) for _ in f]
    if contrast == "groups":
        nce, of_features = between_groups(f, group, temperature)
        dnce = [[0.0] * n_groups for _ in f]
    l2 = sum(v * v for W in (W_enc, W_dec) for row in W for v in row)
    terms = {"mi": mi, "group_lasso": lasso, "l2": l2, "contrastive": nce}
    dE = [
        [
            weights["mi"] * dmi[t][g]
            + weights["group_lasso"] * math.sqrt(sizes[g]) / len(E)
            + weights["contrastive"] * dnce[t][g]
            for g in range(n_groups)
        ]
        for t in range(len(E))
    ]
    dW_enc, dW_dec = ([[2 * weights["l2"] * v for v in row] for row in W] for W in (W_enc, W_dec))
    value = sum(weights[name] * term for name, term in terms.items())
    df = on_features(dE, f, group, n_groups)
    df = [
        [a + weights["contrastive"] * b for a, b in zip(*rows, strict=True)]
        for rows in zip(df, of_features, strict=True)
    ]
    return terms, value, df, dW_enc, dW_dec
