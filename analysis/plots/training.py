"""Figures of what happens while SAEs train."""

from functools import partial

from matplotlib.figure import Figure

from analysis.plots.lines import Panel, curve_panels, line_panels, title_and_unit
from analysis.plots.study import SHARE, WEIGHTED, Missing, Study

PENALTY_CURVES = ("penalty/threshold", "penalty/alpha")
"""Numbers of penalties that follow a schedule."""
FVU = ("held_out_fvu", "held_out_fvu_per_token", "fvu")
MATRICES = {"W_dec": "", "W_enc": "_enc"}


def moving(study: Study, names: list[str]) -> list[str]:
    """Those that are not 0 throughout in every run."""
    return [
        name
        for name in names
        if any((found := study.curve(variant, name)) is not None and found[1].any() for variant in study.followed)
    ]


def training_curves(study: Study) -> Figure:
    logged = study.curve_names()
    losses = [name for name in logged if name.endswith("_loss") or name == "loss"]
    names = moving(study, [*losses, *(name for name in FVU if name in logged)])
    return curve_panels(study, names, log=("loss", "recon_loss", *FVU), missing="no run has logged a step")


def held_out(study: Study) -> Figure:
    names = [name for name in FVU if name in study.curve_names()]
    if "held_out_fvu" not in names:
        raise Missing("no run was followed on held-out text (train.held_out_tokens)")
    return curve_panels(study, names, x="tokens", columns=len(names), log=names)


def sparsity(study: Study) -> Figure:
    names = [name for name in ("l0", "dead_features") if name in study.curve_names()]
    return curve_panels(study, names, columns=2, zero=True, missing="no run has logged L0 or dead features")


def penalty_and_reconstruction(study: Study) -> Figure:
    names = ["recon_loss", WEIGHTED, SHARE]
    if not moving(study, [WEIGHTED]):
        raise Missing("no run has a penalty that acts (penalty=none)")
    return curve_panels(study, names, log=("recon_loss",), zero=True)


def penalty_terms(study: Study) -> Figure:
    names = [name for name in study.curve_names() if name.startswith("penalty/") and "_loss" not in name]
    return curve_panels(study, moving(study, names), missing="no penalty here logs terms of its own")


def schedules(study: Study) -> Figure:
    logged = study.curve_names()
    weights = moving(study, [name for name in logged if name.endswith("_weight")])
    names = [*(name for name in ("lr", "k", "p") if name in logged), *weights]
    names += [n for n in logged if any(n.endswith(end.removeprefix("penalty")) for end in PENALTY_CURVES)]
    note = "As logged at each step, so as used."
    return curve_panels(study, names, zero=True, note=note, missing="no run has logged a step")


def gradient_norms(study: Study) -> Figure:
    """A row for each weight matrix, a panel for each loss term; then the penalty's share of the whole."""
    logged = [name for name in study.curve_names() if name.startswith("grad_norm/")]
    found = [name for name in logged if not name.endswith("_enc") and name != "grad_norm/total"]
    terms = [term for term in found if moving(study, [term + suffix for suffix in MATRICES.values()])]
    if not terms:
        raise Missing("no run has logged gradients (train.monitor_every)")
    variants = [v for v in study.followed if any(study.curve(v, term) is not None for term in terms)]
    shown = [
        Panel(
            f"{title_and_unit(term.removeprefix('grad_norm/') + '_loss', study)[0]}, on {matrix}",
            "norm of the gradient",
            partial(study.curve, name=term + suffix),
            "log",
        )
        for matrix, suffix in MATRICES.items()
        for term in terms
    ]
    note = "Each term times its weight, before clipping."
    return line_panels(study, variants, shown, len(terms), note, size=(2.7, 2.0), sharex=True)
