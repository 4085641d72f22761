"""InfoNCE and the contrastive penalty the slow, obvious way: loops in float64, gradients by hand, lists of floats."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def adjacent(sequence, position):
    """Positives of each row."""
    rows = range(len(sequence))
    return [[b for b in rows if sequence[a] == sequence[b] and abs(position[a] - position[b]) == 1] for a in rows]


def most_similar(x, n, above=-math.inf):
    """The n rows of largest cosine above `above`; that of a row of zeros is 0."""
    rows = range(len(x))
    cosine = [[dot(a, b) / (math.sqrt(dot(a, a) * dot(b, b)) or 1.0) for b in x] for a in x]
    near = [sorted((b for b in rows if b != a), key=lambda b: -cosine[a][b])[:n] for a in rows]
    return [[b for b in near[a] if cosine[a][b] > above] for a in rows]


def by_role(role):
    """Positives and candidates of each row: its partner half a batch away, and all rows of another role; all others
    where there is but one role."""
    n = len(role)
    partner = [(a + n // 2) % n for a in range(n)]
    one = len(set(role)) == 1
    candidates = [{b for b in range(n) if (one and b != a) or role[b] != role[a]} | {partner[a]} for a in range(n)]
    return [[b] for b in partner], candidates


def info_nce(h, positives, temperature, candidates=None):
    """Value and gradient on h, whose rows are normalised first. h [B][D], a list of positives for each row."""
    rows, width = range(len(h)), range(len(h[0]))
    norm = [math.sqrt(dot(row, row)) for row in h]
    u = [[v / norm[a] if norm[a] > 1e-6 else 0.0 for v in h[a]] for a in rows]
    anchors = [a for a in rows if positives[a]]
    value, du = 0.0, [[0.0] * len(h[0]) for _ in h]
    for a in anchors:
        among = [b for b in rows if b != a and (candidates is None or b in candidates[a])]
        weight = {b: math.exp(dot(u[a], u[b]) / temperature) for b in among}
        total = sum(weight.values())
        share = 1 / (len(positives[a]) * len(anchors))
        for p in positives[a]:
            value -= share * math.log(weight[p] / total)
        for b in among:
            ds = weight[b] / total / len(anchors) - (share if b in positives[a] else 0.0)
            for d in width:
                du[a][d] += ds * u[b][d] / temperature
                du[b][d] += ds * u[a][d] / temperature
    dh = [[(du[a][d] - u[a][d] * dot(u[a], du[a])) / norm[a] if norm[a] > 1e-6 else 0.0 for d in width] for a in rows]
    return value, dh


def concentration(f):
    """1 - H(q) / log d_sae, and its gradient on f."""
    d_sae = len(f[0])
    usage = [sum(row[i] for row in f) for i in range(d_sae)]
    total = sum(usage)
    if total == 0:
        return 0.0, [[0.0] * d_sae for _ in f]
    q = [u / total for u in usage]
    entropy = -sum(p * math.log(p) for p in q if p > 0)
    # dH / dusage_i = -(log q_i + H) / total
    grad = [(math.log(p) + entropy) / total / math.log(d_sae) if p > 0 else 0.0 for p in q]
    return 1 - entropy / math.log(d_sae), [list(grad) for _ in f]


def contrastive(f, head, positives, temperature, diversity_weight=0.0, candidates=None):
    """Terms, value, gradients on f [B][d_sae] and head [d_sae][D]."""
    rows, features, width = range(len(f)), range(len(head)), range(len(head[0]))
    h = [[sum(f[t][i] * head[i][d] for i in features) for d in width] for t in rows]
    nce, dh = info_nce(h, positives, temperature, candidates)
    spread, dspread = concentration(f)
    df = [[dot(head[i], dh[t]) + diversity_weight * dspread[t][i] for i in features] for t in rows]
    dhead = [[sum(f[t][i] * dh[t][d] for t in rows) for d in width] for i in features]
    return {"info_nce": nce, "diversity": spread}, nce + diversity_weight * spread, df, dhead
