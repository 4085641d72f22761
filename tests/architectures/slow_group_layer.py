"""What the group layer's options make of f, the slow, obvious way: loops in float64, lists of floats."""

import math


def energies(f, group, n_groups):
    return [
        [math.sqrt(sum(v * v for v, g in zip(row, group, strict=True) if g == wanted)) for wanted in range(n_groups)]
        for row in f
    ]


def competition(f, group, n_groups, temperature):
    out = []
    for row, E in zip(f, energies(f, group, n_groups), strict=True):
        weight = [math.exp((e - max(E)) / temperature) for e in E]
        out.append([v * n_groups * weight[g] / sum(weight) for v, g in zip(row, group, strict=True)])
    return out


def competition_gradient(f, group, n_groups, temperature, upstream):
    """Gradient on f of sum(upstream * competition(f)), by hand."""
    out = []
    for row, E, up in zip(f, energies(f, group, n_groups), upstream, strict=True):
        weight = [math.exp((e - max(E)) / temperature) for e in E]
        gate = [n_groups * w / sum(weight) for w in weight]
        dgate = [sum(u * v for u, v, g in zip(up, row, group, strict=True) if g == w) for w in range(n_groups)]
        mean = sum(d * s for d, s in zip(dgate, gate, strict=True)) / n_groups
        dE = [gate[g] * (dgate[g] - mean) / temperature for g in range(n_groups)]
        out.append(
            [u * gate[g] + (dE[g] * v / E[g] if E[g] > 0 else 0.0) for u, v, g in zip(up, row, group, strict=True)]
        )
    return out


def mask(f, group, n_groups, n_kept):
    out = []
    for row, E in zip(f, energies(f, group, n_groups), strict=True):
        kept = sorted(range(n_groups), key=lambda g: -E[g])[:n_kept]  # noqa: B023
        out.append([v if g in kept else 0.0 for v, g in zip(row, group, strict=True)])
    return out


def residual(f, group, n_groups, r):
    members = [[i for i, g in enumerate(group) if g == wanted] for wanted in range(n_groups)]
    out = []
    for row in f:
        new = list(row)
        for g, mine in enumerate(members):
            for place, i in enumerate(mine):
                others = [row[theirs[place]] for h, theirs in enumerate(members) if h != g and place < len(theirs)]
                new[i] += r * sum(others) / (n_groups - 1)
        out.append(new)
    return out


def residual_gradient(group, n_groups, r, upstream):
    """The residual is linear and symmetric: i takes from j what j takes from i."""
    return residual(upstream, group, n_groups, r)


def reversal(f, group, n_groups, head):
    """The head's error, its gradient on the head, and the reversed gradient on f, by hand."""
    E = energies(f, group, n_groups)
    n = len(E)
    mean = [sum(row[g] for row in E) / n for g in range(n_groups)]
    std = [math.sqrt(sum((row[g] - mean[g]) ** 2 for row in E) / n) for g in range(n_groups)]
    overall = sum(v * v for row in E for v in row) / n / n_groups
    varies = [s * s > 1e-6 * overall for s in std]
    S = [[(row[g] - mean[g]) / std[g] if varies[g] else 0.0 for g in range(n_groups)] for row in E]
    groups = range(n_groups)
    error = [[sum(S[t][h] * head[h][g] for h in groups if h != g) - S[t][g] for g in groups] for t in range(n)]
    value = sum(e * e for row in error for e in row) / n / n_groups
    share = 2 / n / n_groups
    dhead = [[0.0 if g == h else share * sum(S[t][h] * error[t][g] for t in range(n)) for g in groups] for h in groups]
    dS = [
        [share * (sum(error[t][g] * head[h][g] for g in groups if g != h) - error[t][h]) for h in groups]
        for t in range(n)
    ]
    dE = [[0.0] * n_groups for _ in range(n)]
    for g in groups:
        if not varies[g]:
            continue
        mean_dS = sum(dS[t][g] for t in range(n)) / n
        along = sum(dS[t][g] * S[t][g] for t in range(n)) / n
        for t in range(n):
            dE[t][g] = (dS[t][g] - mean_dS - S[t][g] * along) / std[g]
    df = [
        [-dE[t][group[i]] * f[t][i] / E[t][group[i]] if E[t][group[i]] > 0 else 0.0 for i in range(len(group))]
        for t in range(n)
    ]
    return value, dhead, df


def centres(W, group, n_groups):
    out = []
    for wanted in range(n_groups):
        rows = [W[i] for i in range(len(W)) if group[i] == wanted]
        mean = [sum(row[d] for row in rows) for d in range(len(W[0]))]
        norm = math.sqrt(sum(v * v for v in mean))
        out.append([v / norm if norm else 0.0 for v in mean])
    return out


def balanced(W, group, n_groups):
    """New groups: rounds in which each feature asks its nearest group with places, which takes the nearest."""
    centre = centres(W, group, n_groups)
    near = [[sum(a * b for a, b in zip(row, c, strict=True)) for c in centre] for row in W]
    left = [group.count(g) for g in range(n_groups)]
    new = [None] * len(W)
    while None in new:
        asking = {}
        for i in range(len(W)):
            if new[i] is None:
                wish = max((g for g in range(n_groups) if left[g]), key=lambda g: (near[i][g], -g))  # noqa: B023
                asking.setdefault(wish, []).append(i)
        for g, who in asking.items():
            for i in sorted(who, key=lambda i: (-near[i][g], i))[: left[g]]:  # noqa: B023
                new[i] = g
                left[g] -= 1
    return new
