"""Figures of what happens while SAEs train."""

from typing import TYPE_CHECKING

from analysis.plots.lines import (
    curve_panels,
    has_wide_range,
    legend_of,
    line,
    lines_note,
    named_variants,
    title_and_unit,
)
from analysis.plots.study import SHARE, WEIGHTED, Missing, Study
from analysis.plots.style import finish, log_scale, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PENALTY_CURVES = ("penalty/threshold", "penalty/alpha")
"""Numbers of penalties that follow a schedule."""
MATRICES = {"W_dec": "", "W_enc": "_enc"}


def moving(study: Study, names: list[str]) -> list[str]:
    """Those that are not 0 throughout in every run."""
    return [
        name
        for name in names
        if any((found := study.curve(variant, name)) is not None and found[1].any() for variant in study.followed)
    ]


def training_curves(study: Study) -> "Figure":
    logged = study.curve_names()
    losses = [name for name in logged if name.endswith("_loss") or name == "loss"]
    names = moving(study, [*losses, *(name for name in ("fvu", "held_out_fvu") if name in logged)])
    if not names:
        raise Missing("no run has logged a step")
    return curve_panels(study, names, log=("loss", "recon_loss", "fvu", "held_out_fvu"))


def held_out(study: Study) -> "Figure":
    names = [name for name in ("held_out_fvu", "fvu") if name in study.curve_names()]
    if "held_out_fvu" not in names:
        raise Missing("no run was followed on held-out text (train.held_out_tokens)")
    return curve_panels(study, names, x="tokens", columns=2, log=names)


def sparsity(study: Study) -> "Figure":
    names = [name for name in ("l0", "dead_features") if name in study.curve_names()]
    if not names:
        raise Missing("no run has logged L0 or dead features")
    return curve_panels(study, names, columns=2, zero=True)


def penalty_and_reconstruction(study: Study) -> "Figure":
    names = ["recon_loss", WEIGHTED, SHARE]
    if not moving(study, [WEIGHTED]):
        raise Missing("no run has a penalty that acts (penalty=none)")
    return curve_panels(study, names, log=("recon_loss",), zero=True)


def penalty_terms(study: Study) -> "Figure":
    names = [name for name in study.curve_names() if name.startswith("penalty/") and "_loss" not in name]
    names = moving(study, names)
    if not names:
        raise Missing("no penalty here logs terms of its own")
    return curve_panels(study, names)


def schedules(study: Study) -> "Figure":
    logged = study.curve_names()
    weights = moving(study, [name for name in logged if name.endswith("_weight")])
    names = [*(name for name in ("lr", "k", "p") if name in logged), *weights]
    names += [n for n in logged if any(n.endswith(end.removeprefix("penalty")) for end in PENALTY_CURVES)]
    if not names:
        raise Missing("no run has logged a step")
    return curve_panels(study, names, zero=True, note="As logged at each step, so as used.")


def gradient_norms(study: Study) -> "Figure":
    """A row for each weight matrix, a panel for each loss term; then the penalty's share of the whole."""
    logged = [name for name in study.curve_names() if name.startswith("grad_norm/")]
    terms = moving(study, [n for n in logged if not n.endswith("_enc") and n != "grad_norm/total"])
    if not terms:
        raise Missing("no run has logged gradients (train.monitor_every)")
    variants = [variant for variant in study.followed if any(study.curve(variant, name) is not None for name in terms)]
    named = named_variants(study, variants)
    fig, axes = panels(2 * len(terms), len(terms), (2.7, 2.0), sharex=True)
    places = [(matrix, suffix, term) for matrix, suffix in MATRICES.items() for term in terms]
    for ax, (matrix, suffix, term) in zip(axes, places, strict=True):
        for number, variant in enumerate(named):
            if found := study.curve(variant, term + suffix):
                line(ax, *found, number)
        title, _ = title_and_unit(term.removeprefix("grad_norm/") + "_loss", study)
        ax.set(title=f"{title}, on {matrix}", ylabel="norm of the gradient")
        if has_wide_range(study, named, term + suffix):
            log_scale(ax, "y")
    for ax in axes[-len(terms) :]:
        ax.set_xlabel("training step")
    note = lines_note(study, variants, named)
    return finish(fig, *legend_of(named), note=f"{note} Each term times its weight, before clipping.".strip())
