"""Do exported SAEs mean the same to SAELens as to this project?

Run with the Python of an environment that has SAELens 6: `python scripts/check_saelens.py RUN/sae ...`. Each folder is
loaded with `SAE.load_from_disk`; its encode and decode are compared with the formulas written out below and, where
this project can be imported, with `sae_sweeps.architectures.saelens.load`. Inputs are seeded random activations around
the decoder bias and those of `--activations FILE` (safetensors, a tensor `x` [tokens, d_in]). Ends with 1 above the
tolerance.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder with cfg.json and weights")
    parser.add_argument("--activations", type=Path, help="safetensors file with a tensor x [tokens, d_in]")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative difference (default 1e-5)")
    arguments = parser.parse_args()
    differences: list[float] = []
    for folder in arguments.folders:
        inputs = {"random": random_activations(folder)}
        if arguments.activations:
            inputs["given"] = load_file(arguments.activations)["x"].float()
        theirs = with_saelens(folder)
        ours = {"formulas": with_formulas(folder), "sae_sweeps": with_this_project(folder)}
        for source, x_BD in inputs.items():
            f_BF, x_hat_BD = theirs(x_BD)
            print(f"{folder}: {len(x_BD)} {source} activations, L0 = {(f_BF != 0).sum(-1).float().mean():.1f}")
            for name, forward in ours.items():
                if forward:
                    our_f_BF, our_x_hat_BD = forward(x_BD)
                    pair = relative_difference(our_f_BF, f_BF), relative_difference(our_x_hat_BD, x_hat_BD)
                    differences.extend(pair)
                    print(f"  SAELens against {name}: encode {pair[0]:.1e}, decode {pair[1]:.1e}")
    fits = all(difference <= arguments.tolerance for difference in differences)  # False for nan
    verdict = "within" if fits else "NOT within"
    print(f"max relative difference {max(differences):.1e}: {verdict} {arguments.tolerance:.0e}")
    return 0 if fits else 1


def with_saelens(folder: Path) -> Forward:
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    return lambda x_BD: (f_BF := sae.encode(x_BD).detach(), sae.decode(f_BF).detach())


def with_formulas(folder: Path) -> Forward:
    """z = (x - b_dec) W_enc + b_enc; f = ReLU(z), for topk only at the k largest z, for jumprelu only above the
    threshold; gated: the magnitude's ReLU where the gate is open; x_hat = f W_dec + b_dec."""
    cfg, w = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")

    def forward(x_BD: Tensor) -> tuple[Tensor, Tensor]:
        linear_BF = (x_BD - w["b_dec"]) @ w["W_enc"]
        z_BF = linear_BF + w["b_gate" if cfg["architecture"] == "gated" else "b_enc"]
        f_BF = z_BF.clamp(min=0)
        if cfg["architecture"] == "gated":
            f_BF = (linear_BF * w["r_mag"].exp() + w["b_mag"]).clamp(min=0) * (z_BF > 0)
        elif cfg["architecture"] == "jumprelu":
            f_BF = f_BF * (z_BF > w["threshold"])
        elif cfg["architecture"] == "topk":
            smallest_kept_B1 = z_BF.sort(descending=True).values[:, cfg["k"] - 1 : cfg["k"]]
            f_BF = f_BF * (z_BF >= smallest_kept_B1)
        return f_BF, f_BF @ w["W_dec"] + w["b_dec"]

    return forward


def with_this_project(folder: Path) -> Forward | None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        from sae_sweeps.architectures.saelens import load
    except ImportError as error:
        print(f"sae_sweeps cannot be imported here ({error}); compared with the formulas only")
        return None
    sae = load(folder)
    return lambda x_BD: (f_BF := sae.encode(x_BD), sae.decode(f_BF))


def random_activations(folder: Path, n_tokens: int = 512) -> Tensor:
    """Seeded: the decoder bias plus sums of a few decoder rows plus noise, so that features fire."""
    w = load_file(folder / "sae_weights.safetensors")
    generator = torch.Generator().manual_seed(0)
    d_sae, d_in = w["W_dec"].shape
    codes_BF = torch.rand(n_tokens, d_sae, generator=generator) * (
        torch.rand(n_tokens, d_sae, generator=generator) < 0.05
    )
    scale = w["W_enc"].norm(dim=0).reciprocal().median()
    return w["b_dec"] + scale * (5 * codes_BF @ w["W_dec"] + torch.randn(n_tokens, d_in, generator=generator))


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest |a - b| over largest |b|."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()


if __name__ == "__main__":
    sys.exit(main())
