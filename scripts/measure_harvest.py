"""Processor time of harvesting against the bare model's forward pass to the same layer, interleaved; read the ratios.

    python -m scripts.measure_harvest [MODEL_FOLDER] [--layer N] [--beside M ...] [--rounds N] [--batches N]

Without a folder: a GPTNeoX with random weights (d_in 512, 6 layers, Pythia-70M's shape). `bare` is transformers' own
base model with the layers after N cut off; `harvest` everything from token rows to the stored shards' content;
`together` the same for the layers M and N in one pass, of which the last column has the ratio to `harvest`;
`bridge` TransformerLens' run_with_cache(names_filter=..., stop_at_layer=...), for comparison.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_sweeps.activations.harvest import TextSource, streams
from sae_sweeps.activations.language_model import LanguageModel, load_language_model
from sae_sweeps.builtin import MODEL_FOLDER
from sae_sweeps.config.schema import DataConfig, LayerConfig, ModelConfig


def random_model(folder: Path) -> Path:
    """A random GPTNeoX of Pythia-70M's shape with the built-in tokenizer."""
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = dict(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048)
    torch.manual_seed(0)
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=4096, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(folder)
    return folder


def bare_forward(lm: LanguageModel, layer: int) -> Callable[[Tensor], Any]:
    model = copy.deepcopy(lm.model.base_model)
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    blocks = next(blocks for blocks in lists if len(blocks) == lm.n_layers)
    del blocks[layer + 1 :]
    model.config.num_hidden_layers = layer + 1
    return torch.no_grad()(lambda tokens_SL: model(tokens_SL, use_cache=False))


def bridge_forward(folder: Path, layer: int) -> Callable[[Tensor], Any]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    hook = f"blocks.{layer}.hook_resid_post"
    return torch.no_grad()(lambda tokens: bridge.run_with_cache(tokens, names_filter=hook, stop_at_layer=layer + 1))


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--beside", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=16, help="of 32 contexts, in each round")
    parser.add_argument("--no-bridge", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = words.folder or random_model(Path(scratch))
        lm = load_language_model(ModelConfig(source="local", path=str(folder)), "cpu")
        layers, data, batches = (
            [LayerConfig(index=number) for number in (words.layer, *words.beside)],
            DataConfig(),
            words.batches,
        )
        sources = [TextSource(lm, layer, data, "train", lm.dtype, 32) for layer in layers]
        source = sources[0]
        groups = source._groups()
        read = [next(groups) for _ in range(batches)]
        tokens = [torch.from_numpy(tokens_SL).long() for tokens_SL, _, _ in read]
        n_tokens = sum(int(keep_SL.sum()) for _, _, keep_SL in read)  # one more would be another batch
        bare = bare_forward(lm, words.layer)
        ways: dict[str, Callable[[], Any]] = {
            "bare": lambda: [bare(rows) for rows in tokens],
            "harvest": lambda: list(source.stream(0, n_tokens)),
            "together": lambda: list(streams(sources, 0, n_tokens)),
        }
        if not words.no_bridge:
            bridge = bridge_forward(folder, words.layer)
            ways["bridge"] = lambda: [bridge(rows) for rows in tokens]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(words.rounds + 1):
            for name, way in ways.items():
                start = time.process_time()
                way()
                times[name].append(time.process_time() - start)
    for name, seconds in times.items():
        bare_ratio, harvest_ratio = (
            statistics.median(mine / theirs for mine, theirs in zip(seconds[1:], times[base][1:], strict=True))
            for base in ("bare", "harvest")
        )
        milliseconds = 1e3 * statistics.median(seconds[1:])
        print(f"{name:8} {milliseconds:8.1f} ms   {bare_ratio:.2f} x bare   {harvest_ratio:.2f} x harvest")


if __name__ == "__main__":
    main()
