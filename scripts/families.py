"""Tiny random models of every family, and the table of which hooks are right on them: `python -m scripts.families`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers as hf

from sae_sweeps.activations.language_model import LanguageModel
from sae_sweeps.config.schema import LayerConfig
from sae_sweeps.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
HOOKS = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out",
    "attn.hook_z", "attn.hook_q", "mlp.hook_post", "ln2.hook_normalized",
)  # fmt: skip
VOCABULARY = 384


def _sizes(**more: Any) -> dict[str, Any]:
    sizes = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    return sizes | dict(bos_token_id=0, eos_token_id=1, pad_token_id=None) | more


def _llama_like(**more: Any) -> dict[str, Any]:
    return _sizes(intermediate_size=64, num_key_value_heads=2, max_position_embeddings=64) | more


def _gpt2_like(**more: Any) -> dict[str, Any]:
    return dict(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=0) | more


def _neox(**more: Any) -> Any:
    return hf.GPTNeoXConfig(**_sizes(intermediate_size=64, max_position_embeddings=64) | more)


def _opt(**more: Any) -> Any:
    sizes = _sizes(ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=2)
    return hf.OPTConfig(**sizes | more)


def _bloom(**more: Any) -> Any:
    return hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, **more)


MULTIPLIERS = dict(logits_scaling=8.0, residual_multiplier=0.22, embedding_multiplier=12.0)

FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama": lambda: hf.LlamaConfig(**_llama_like()),
    "Qwen2": lambda: hf.Qwen2Config(**_llama_like()),
    "Qwen3": lambda: hf.Qwen3Config(**_llama_like(head_dim=8)),
    "Mistral": lambda: hf.MistralConfig(**_llama_like()),
    "Mixtral": lambda: hf.MixtralConfig(**_llama_like(num_local_experts=4)),
    "Gemma 2": lambda: hf.Gemma2Config(**_llama_like(head_dim=8, attn_logit_softcapping=2.0)),
    "Gemma 3": lambda: hf.Gemma3TextConfig(**_llama_like(head_dim=8)),
    "GPT-2": lambda: hf.GPT2Config(**_gpt2_like()),
    "GPT-J": lambda: hf.GPTJConfig(**_gpt2_like(rotary_dim=4)),
    "GPTNeoX": lambda: _neox(),
    "Phi": lambda: hf.PhiConfig(**_llama_like(num_key_value_heads=4)),
    "Phi-3": lambda: hf.Phi3Config(**_llama_like()),
    "OPT": lambda: _opt(),
    "BLOOM": lambda: _bloom(),
    "Falcon": lambda: hf.FalconConfig(**_sizes()),
    "MPT": lambda: hf.MptConfig(
        vocab_size=VOCABULARY, d_model=32, n_layers=3, n_heads=4, max_seq_len=64, expansion_ratio=2
    ),
    "StableLM": lambda: hf.StableLmConfig(**_llama_like()),
    "OLMo 2": lambda: hf.Olmo2Config(**_llama_like()),
    "Granite": lambda: hf.GraniteConfig(**_llama_like(**MULTIPLIERS)),
    "Cohere": lambda: hf.CohereConfig(**_llama_like()),
    "GLM-4": lambda: hf.Glm4Config(**_llama_like(head_dim=8)),
    # Configs of these families under which something else is added to the stream
    "GPTNeoX, attention first": lambda: _neox(use_parallel_residual=False),
    "StableLM, side by side": lambda: hf.StableLmConfig(**_llama_like(use_parallel_residual=True)),
    "OPT-350m, norms last": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "BLOOM, normed residual": lambda: _bloom(apply_residual_connection_post_layernorm=True),
    "Falcon 40B": lambda: hf.FalconConfig(**_sizes(num_kv_heads=2, new_decoder_architecture=True)),
    "Falcon-RW": lambda: hf.FalconConfig(**_sizes(parallel_attn=False, alibi=True, multi_query=False)),
}
N_NAMED = 21
"""The first of them are families; the others, further configs of these."""


def make(family: str) -> Any:
    """A model with random weights, norms and biases included."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hf.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn_like(weight)
            weight.copy_(0.2 * noise if weight.ndim > 1 else weight + 0.1 * noise)
    return model


def language_model(family: str) -> LanguageModel:
    return LanguageModel(make(family), SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=2))


def cell(lm: LanguageModel, hook: str) -> str:
    """`right`, `bridge` where TransformerLens' modules compute it, or the sentence that refuses the hook."""
    try:
        return "bridge" if lm.site(LayerConfig(hook, 1)).kind == "point" else "right"
    except ConfigError as error:
        return re.sub(r"^layer\.hook(=\S+)?: ", "", str(error))


def table() -> str:
    """The page's table in Markdown, with a numbered list of why hooks are refused."""
    reasons: dict[str, int] = {}
    lines = ["| family | " + " | ".join(f"`{hook}`" for hook in HOOKS) + " |", "|---" * (len(HOOKS) + 1) + "|"]
    for family in FAMILIES:
        lm = language_model(family)
        cells = []
        for hook in HOOKS:
            found = cell(lm, hook)
            if found not in ("right", "bridge"):
                found = re.sub(r"has no such hook in a layer; near.*", "has no such hook.", found)
                found = re.sub(r" \(off by .*?\)", "", found.replace(f"{lm.family} ", "the model ", 1))
                found = re.sub(r"layer \d+", "a layer", re.sub(rf"\b(for|in) {lm.family}\b", r"\1 the model", found))
                found = f"no ({reasons.setdefault(found, len(reasons) + 1)})"
            cells.append(found)
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in reasons.items())])


def main() -> None:
    start, end = "<!-- families -->\n", "\n<!-- /families -->"
    before, _, rest = PAGE.read_text().partition(start)
    PAGE.write_text(before + start + table() + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
