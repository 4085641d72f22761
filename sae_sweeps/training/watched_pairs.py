"""The monitor `pairs`: how alike, how often together and how correlated some pairs of features are, in every run.

At 2 % of the run and again at 25 % a run chooses 48 pairs among all that are active on a common token of that step's
batch, by their Jaccard overlap n_ij: the 16 of highest, the 16 at the median and the 16 of lowest overlap. The rule is
the same whatever the penalty, so that runs with and without one can be compared; the pairs are each run's own. They are
recorded when they are chosen and at every monitored step from then on (monitors.jsonl):

    monitor, step   "pairs", the step
    chosen          2 or 25: percent of the run
    chosen_at       the step at which they were chosen
    pairs           [[i, j], ...] in the order highest, median, lowest, a third of them each
    overlap         Jaccard overlap |A_i n A_j| / |A_i u A_j| over the step's batch; 0 where never together
    abs_cosine      |w_i . w_j|
    correlation     correlation of f_i and f_j over the batch; 0 where one of them does not vary
    c               competition c_ij, where the run has a penalty that defines one

Such a penalty also has the monitor `competition`, as earlier runs have it alone: the pairs of 25 % with pairs, overlap
(by the penalty's own measure), c, abs_cosine and correlation. Where listing the pairs of a dense batch would take too
much memory, they are those among 1,024 fixed features (`kernels/coactivation.py`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from sae_sweeps.architectures.context import Context
from sae_sweeps.kernels.coactivation import overlapping_pairs
from sae_sweeps.kernels.competition import Competition

MOMENTS = (2, 25)
"""Percent of the run at which pairs are chosen."""
EACH = 16
"""Pairs of highest, of median and of lowest overlap."""
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, as int64. The multiples of a pair's number order pairs of equal overlap: as if at random,
so that they are not all of one feature, and the same in every run."""


class WatchedPairs(nn.Module):
    """State: the pairs chosen at each moment, and the steps at which they were."""

    def __init__(self, total_steps: int):
        super().__init__()
        self.due = [round(percent / 100 * total_steps) for percent in MOMENTS]
        self.register_buffer("pairs", torch.full((len(MOMENTS), 2, 3 * EACH), -1))
        self.register_buffer("chosen_at", torch.full((len(MOMENTS),), -1))
        self.pairs: Tensor
        """i and j; -1 before they are chosen, and where fewer pairs are active together."""
        self.chosen_at: Tensor

    @torch.no_grad()
    def records(self, ctx: Context, competitions: dict[str, Competition]) -> list[dict[str, Any]]:
        """The records of a step, before its update. competitions: those of its penalties, by name."""
        out: list[dict[str, Any]] = []
        for number, (percent, due) in enumerate(zip(MOMENTS, self.due, strict=True)):
            if ctx.step >= due and int(self.chosen_at[number]) < 0:
                self.choose(number, ctx)
            i, j = self.pairs[number][:, self.pairs[number, 0] >= 0]
            if not len(i):
                continue
            found = Pairs(ctx, i, j)
            chosen = {"chosen": percent, "chosen_at": int(self.chosen_at[number])}
            competing = [found.competing(one) for one in competitions.values()]
            c = {"c": competing[0]["c"]} if competing else {}
            out.append({"monitor": "pairs", **chosen, **found.alike(), **c})
            if percent == MOMENTS[-1]:
                for name, own in zip(competitions, competing, strict=True):
                    owner = {} if name == "penalty" else {"penalty": name}
                    out.append({"monitor": "competition", **owner, **found.alike(), **own})
        return out

    def choose(self, number: int, ctx: Context) -> None:
        """Choose the pairs of a moment from the step's batch; none where no two features are active together."""
        i, j, n = overlapping_pairs(ctx.feature_acts, len(ctx.x))
        if not len(n):
            return
        self.chosen_at[number] = ctx.step
        shuffled = ((i * ctx.feature_acts.d_sae + j) * GOLDEN).argsort()
        order = shuffled[n[shuffled].argsort(stable=True)]
        middle = max(0, len(order) // 2 - EACH // 2)
        for place, chosen in enumerate((order[-EACH:], order[middle : middle + EACH], order[:EACH])):
            start = place * EACH
            self.pairs[number, :, start : start + len(chosen)] = torch.stack([i[chosen], j[chosen]])


class Pairs:
    """The pairs i, j [pairs] in a step's batch: tokens on which both, i and j are active, and activations."""

    def __init__(self, ctx: Context, i: Tensor, j: Tensor):
        self.W_dec, self.i, self.j = ctx.sae.W_dec, i, j
        f = ctx.feature_acts.columns(torch.cat([i, j])).double()
        self.f_i, self.f_j = f[:, : len(i)], f[:, len(i) :]
        fires_i, fires_j = self.f_i > 0, self.f_j > 0
        self.both, self.n_i, self.n_j = ((fires_i & fires_j).sum(0), fires_i.sum(0), fires_j.sum(0))

    def alike(self) -> dict[str, Any]:
        d_i, d_j = self.f_i - self.f_i.mean(0), self.f_j - self.f_j.mean(0)
        spread = (d_i.square().sum(0) * d_j.square().sum(0)).sqrt()
        return {
            "pairs": torch.stack([self.i, self.j], 1).tolist(),
            "overlap": rounded(self.both / (self.n_i + self.n_j - self.both).clamp(min=1)),
            "abs_cosine": rounded((self.W_dec[self.i] * self.W_dec[self.j]).sum(1).abs()),
            "correlation": rounded(torch.where(spread > 0, (d_i * d_j).sum(0) / spread.clamp(min=1e-30), 0.0)),
        }

    def competing(self, competition: Competition) -> dict[str, list[float]]:
        """Overlap by the penalty's measure, and c_ij; both 0 where i and j are never active together."""
        n = competition.overlaps(self.both, self.n_i, self.n_j, len(self.f_i))
        n, c = (torch.where(self.both > 0, values, 0.0) for values in (n, competition.weights(n)))
        return {"overlap": rounded(n), "c": rounded(c)}


def rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
