"""Whole training steps, ours and the peers': each function makes one that takes a step's number and does the step.

All do forward, backward, removal of the decoder's parallel gradient, clipping at 1, Adam, and keep decoder rows at unit
norm (SAELens rescales activations by the norm instead); no auxiliary loss. Peers run as they come, but for that.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.data import Shape, batches

if TYPE_CHECKING:
    from sae_sweeps.architectures.base import SAE
    from sae_sweeps.architectures.batch import Batch
    from sae_sweeps.training.step import Training

Step = Callable[[int], Any]
LR = 1e-4


SPARSITY = {
    "topk": "k={k} architecture.aux_weight=0",
    "batch_topk": "k={k} architecture.aux_weight=0",
    "matryoshka": "k={k} architecture.aux_weight=0",
    "jumprelu": "target_l0={k}",
    "standard": "target_l0={k}",
    "gated": "target_l0={k}",
    "p_anneal": "target_l0={k}",
}
"""Words that make an architecture sparse; `lower_biases` does what these cannot do in a few steps."""
TOTAL_STEPS = 10_000


def trainings(shape: Shape, words: str = "", architecture: str = "topk", group: int = 1) -> list[Training]:
    """Runs in training as a command with these words makes them, `group` of the same."""
    from hydra import compose, initialize_config_dir

    from sae_sweeps.cli.command import register
    from sae_sweeps.config.paths import config_dir
    from sae_sweeps.config.run import run_config
    from sae_sweeps.config.words import rewrite
    from sae_sweeps.training.step import Training

    register()
    given = [
        "model=synthetic", f"model.d_in={shape.d_in}", f"d_sae={shape.d_sae}", f"batch_size={shape.batch}",
        f"num_tokens={TOTAL_STEPS * shape.batch}", f"lr={LR}", f"architecture={architecture}",
        f"train.precision={'bfloat16' if shape.bfloat16 else 'float32'}",
    ]  # fmt: skip
    last = {
        word.partition("=")[0]: word
        for word in [*given, *SPARSITY[architecture].format(k=shape.k).split(), *words.split()]
    }
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        run = run_config(compose("config", overrides=rewrite(list(last.values()))))
    device = torch.device(shape.device)
    return [Training(run, 1.0, torch.zeros(shape.d_in, device=device), device) for _ in range(group)]


def as_batches(shape: Shape) -> list[Batch]:
    """`batches` with the place of each token: windows of 32, half of them to be forgotten."""
    from sae_sweeps.architectures.batch import Batch

    number = torch.arange(shape.batch, dtype=torch.int32, device=shape.device)
    role = (1 + number // 32 % 2).to(torch.int8)
    return [Batch(x, number, number // 32, number % 32, role) for x in batches(shape)]


@torch.no_grad()
def lower_biases(sae: SAE, x: Tensor, l0: float) -> None:
    """Lower the biases until l0 features are active on a token of x in the mean, as training does.

    At first half of all are. At lr 1e-3 and target_l0=32 (512 -> 8192) 340 to 420 were after 50 steps of 300, 190 to
    290 after 60 to 150, 35 at the end.
    """
    z = ((x[:256] - sae.b_dec) @ sae.W_enc).flatten()
    least = z.kthvalue(round(len(z) * (1 - l0 / sae.d_sae))).values
    for name, parameter in sae.named_parameters():
        if name in ("b_enc", "b_mag"):
            parameter -= least


def ours(shape: Shape, words: str = "", architecture: str = "topk", first_step: float = 0.0, group: int = 1) -> Step:
    """Our training as a run does it, logging every tenth step; `words` are those of a command, `first_step` where in
    the run the steps begin, as a share of it. A step of a `group` is one of each of its SAEs on the same batch."""
    members, data = trainings(shape, words, architecture, group), as_batches(shape)
    if architecture in ("standard", "gated", "p_anneal"):
        for training in members:
            lower_biases(training.sae, data[0].x, shape.k)
    offset = round(first_step * TOTAL_STEPS)

    def step(number: int) -> None:
        for training in members:
            training.step(data[number % len(data)], offset + number, logged=number % 10 == 9)

    return step


def sparsify(shape: Shape) -> Step:
    import os

    if shape.device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder
    from sparsify.config import SparseCoderConfig

    sae = SparseCoder(shape.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k), device=shape.device)
    adam, data = torch.optim.Adam(sae.parameters(), lr=LR), batches(shape)

    def step(i: int) -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(data[i % len(data)]).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def sae_lens(shape: Shape) -> Step:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    cfg = TopKTrainingSAEConfig(
        d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, aux_loss_coefficient=0.0, device=shape.device
    )
    settings = SAETrainerConfig(
        total_training_samples=10_000 * shape.batch, train_batch_size_samples=shape.batch, lr=LR, lr_end=LR,
        device=shape.device, autocast=shape.bfloat16,
    )  # fmt: skip
    data = batches(shape)
    trainer = SAETrainer(settings, TopKTrainingSAE(cfg), iter(data))

    def step(i: int) -> None:
        trainer.step(data[i % len(data)])
        trainer.n_training_steps += 1

    return step


def dictionary_learning(shape: Shape) -> Step:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000, activation_dim=shape.d_in, dict_size=shape.d_sae, k=shape.k, layer=0, lm_name="none", lr=LR,
        auxk_alpha=0, device=shape.device,
    )  # fmt: skip
    data = batches(shape)

    def step(i: int) -> None:
        with torch.autocast(shape.device, torch.bfloat16) if shape.bfloat16 else nullcontext():
            trainer.update(i + 1, data[i % len(data)])

    return step


def plain(shape: Shape, compile: bool = False) -> Step:
    """A dense step as one writes it in an afternoon, with fused Adam; its loss may go through torch.compile."""
    generator = torch.Generator().manual_seed(1)
    W = F.normalize(torch.randn(shape.d_sae, shape.d_in, generator=generator), dim=1).to(shape.device)
    W_enc, W_dec = W.clone().requires_grad_(), W.clone().requires_grad_()
    b_enc, b_dec = (torch.zeros(n, device=shape.device, requires_grad=True) for n in (shape.d_sae, shape.d_in))
    weights = [W_enc, W_dec, b_enc, b_dec]
    adam, data = torch.optim.Adam(weights, lr=LR, fused=True), batches(shape)

    def loss(x: Tensor) -> Tensor:
        with torch.autocast(shape.device, torch.bfloat16) if shape.bfloat16 else nullcontext():
            z = F.linear(x - b_dec, W_enc, b_enc).relu()
            values, index = z.topk(shape.k, dim=1, sorted=False)
            x_hat = torch.zeros_like(z).scatter(1, index, values) @ W_dec + b_dec
        return (x_hat - x).square().sum(1).mean()

    taken = torch.compile(loss) if compile else loss

    def step(i: int) -> None:
        taken(data[i % len(data)]).backward()
        with torch.no_grad():
            assert W_dec.grad is not None
            W_dec.grad -= (W_dec * W_dec.grad).sum(1, keepdim=True) * W_dec
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            adam.step()
            adam.zero_grad()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    return step


def encoder_product(shape: Shape) -> Step:
    """x W_enc + b_enc alone, as torch runs it: no training step with an exact encoder takes less."""
    dtype = torch.bfloat16 if shape.bfloat16 else torch.float32
    x = batches(shape, 1)[0].to(dtype)
    W, b = (torch.randn(*s, device=shape.device, dtype=dtype) for s in ((shape.d_sae, shape.d_in), (shape.d_sae,)))
    return lambda i: F.linear(x, W, b)


CONTENDERS: dict[str, Callable[..., Step]] = {
    "ours": ours, "sparsify": sparsify, "sae_lens": sae_lens, "dictionary_learning": dictionary_learning,
    "plain": plain, "encoder_product": encoder_product,
}  # fmt: skip
