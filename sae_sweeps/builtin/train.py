"""Training of the built-in model: `python -m sae_sweeps.builtin.train` repeats it from scratch.

A byte-level BPE tokenizer, then a small GPTNeoX (Pythia's architecture) on the training documents of `corpus`. The
batch and the dropout of a step depend on seed and step alone, so a killed run continues from its last checkpoint.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae_sweeps.builtin import MODEL_FOLDER
from sae_sweeps.builtin.text import corpus
from sae_sweeps.errors import ConfigError
from sae_sweeps.storage.files import read_json, write_bytes, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import GPTNeoXForCausalLM

VOCABULARY = 4096
CONTEXT = 256
BOS, PAD = 0, 1
SPECIAL_TOKENS = ["<|endoftext|>", "<|padding|>"]
"""As Pythia's, with the ids BOS and PAD; the first marks beginning and end of text and unknown tokens."""

ARCHITECTURE: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=160,
    num_hidden_layers=5,
    num_attention_heads=5,
    intermediate_size=640,
    max_position_embeddings=1024,
    use_parallel_residual=True,
    tie_word_embeddings=False,
    bos_token_id=BOS,
    eos_token_id=BOS,
    pad_token_id=PAD,
)
ROTARY: dict[str, Any] = dict(rotary_pct=0.25, rotary_emb_base=10000)

PROGRESS_ROWS = 128
"""Held-out rows whose loss is printed at checkpoints."""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights besides corpus and machine."""

    steps: int = 5000
    rows: int = 16
    """Rows of CONTEXT tokens per step."""
    lr: float = 5e-3
    """Peak of both optimizers' learning rate; linear decay to 0."""
    warmup: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.1
    """Of embeddings and of what attention and MLP add to the residual stream: the text is read many times over."""
    seed: int = 0


# --- text to rows ---


def train_tokenizer(texts: Iterable[str]) -> "Tokenizer":
    """Byte-level BPE of VOCABULARY tokens, which decodes every text unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenise(tokenizer: "Tokenizer", split: corpus.Split) -> list[Tensor]:
    """Token ids of each document of the split, int64 [length], without BOS."""
    texts = [text for _, text in corpus.documents(split)]
    return [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def pack(documents: list[Tensor], generator: torch.Generator | None = None) -> Tensor:
    """Rows [R, CONTEXT] that start with BOS, cut from the documents with BOS between them; the rest is dropped.

    With a generator, documents are in random order, the first cut falls anywhere and rows are shuffled, so that every
    epoch cuts the text elsewhere.
    """
    width = CONTEXT - 1
    order = range(len(documents)) if generator is None else torch.randperm(len(documents), generator=generator).tolist()
    bos = torch.tensor([BOS])
    stream = torch.cat([part for i in order for part in (documents[i], bos)])
    if generator is not None:
        stream = stream[int(torch.randint(width, (1,), generator=generator)) :]
    rows = stream[: len(stream) // width * width].view(-1, width)
    rows = torch.cat([torch.full((len(rows), 1), BOS), rows], dim=1)
    return rows if generator is None else rows[torch.randperm(len(rows), generator=generator)]


# --- model and optimizer ---


def fresh_model(recipe: Recipe) -> "GPTNeoXForCausalLM":
    """A randomly initialised model, float32."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(recipe.seed)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**ARCHITECTURE, **ROTARY, hidden_dropout=recipe.dropout))


def optimizers_for(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms."""
    inside = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    return [
        torch.optim.Muon(inside, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True),
    ]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Rate of the step (from 0): linear warm-up, then linear to 0 at the end."""
    return recipe.lr * min((step + 1) / recipe.warmup, (recipe.steps - step) / (recipe.steps - recipe.warmup))


def loss_of(model: torch.nn.Module, rows: Tensor) -> Tensor:
    """Mean cross-entropy of next tokens within the rows [B, CONTEXT], nats per token."""
    logits = model(input_ids=rows).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: Tensor, batch: int = 32) -> float:
    """`loss_of` over all rows, in float32 and without dropout."""
    model.eval()
    return sum(loss_of(model, part).item() * len(part) for part in rows.split(batch)) / len(rows)


# --- files ---


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], progress: dict[str, Any]
) -> None:
    """One safetensors file with weights, optimizer state and, as its metadata, the progress."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{parameter}.{name}": tensor for name, tensor in state.items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes(folder / "checkpoint.safetensors", save(tensors, metadata={"progress": json.dumps(progress)}))


def load_checkpoint(
    folder: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any] | None:
    """Put weights and optimizer state back; the progress that was saved with them, or None without a checkpoint."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return None
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    tensors = load(content)
    model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, i, parameter, name = key.split(".")
            states[int(i)].setdefault(int(parameter), {})[name] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return json.loads(header["__metadata__"]["progress"])


def export(model: "GPTNeoXForCausalLM", tokenizer: "Tokenizer", folder: Path) -> None:
    """Write float16 weights, config and tokenizer in Hugging Face format, each file whole or not at all."""
    with tempfile.TemporaryDirectory() as scratch:
        deepcopy(model).half().save_pretrained(scratch)
        config = read_json(Path(scratch, "config.json"))
        # Names that transformers 4 reads; its successor renamed them.
        write_json(folder / "config.json", config | ROTARY | {"torch_dtype": "float16"})
        for name in ("generation_config.json", "model.safetensors"):
            write_bytes(folder / name, Path(scratch, name).read_bytes())
    write_bytes(folder / "tokenizer.json", tokenizer.to_str().encode("utf-8"))
    text, padding = SPECIAL_TOKENS
    special = dict(bos_token=text, eos_token=text, unk_token=text, pad_token=padding)
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        special
        | dict(
            tokenizer_class="PreTrainedTokenizerFast",
            model_max_length=ARCHITECTURE["max_position_embeddings"],
            clean_up_tokenization_spaces=False,
        ),
    )


def exported_loss(folder: Path, rows: Tensor) -> float:
    """`mean_loss` of the exported weights, computed in float32."""
    from transformers import AutoModelForCausalLM

    return mean_loss(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False), rows)


# --- the run ---


def train(recipe: Recipe, work: Path, out: Path, checkpoint_every: int = 250) -> dict[str, Any]:
    """Train from the last checkpoint in `work`, if any, and export to `out`.

    Returns the facts that are written to `training.json` beside the weights; losses are those of the exported weights.

    Raises:
        ConfigError: the checkpoint has another corpus or recipe; only `steps` may differ.
    """
    tokenizer = train_tokenizer(text for _, text in corpus.documents("train"))
    documents = tokenise(tokenizer, "train")
    held_out_documents = tokenise(tokenizer, "held_out")
    held_out = pack(held_out_documents)
    glance = held_out[:: max(1, len(held_out) // PROGRESS_ROWS)]
    corpus_tokens = sum(map(len, documents))
    print(f"{corpus_tokens:,} tokens in {len(documents)} documents, {held_out.numel():,} held out", flush=True)

    model = fresh_model(recipe)
    optimizers = optimizers_for(model, recipe)
    made_of = asdict(recipe) | {"corpus_digest": corpus.digest()}
    progress = load_checkpoint(work, model, optimizers) or {"step": 0, "seconds": 0.0, "made_of": made_of}
    for key in made_of.keys() - {"steps"}:
        if made_of[key] != progress["made_of"][key]:
            raise ConfigError(
                f"{work} holds a checkpoint with {key}={progress['made_of'][key]}, not {made_of[key]}; "
                "choose another --work."
            )
    seconds, started = progress["seconds"], time.monotonic() - progress["seconds"]
    recent: deque[float] = deque(maxlen=50)
    for step, rows in islice(enumerate(batches(documents, recipe)), progress["step"], recipe.steps):
        recent.append(take_step(model, optimizers, rows, step, recipe))
        done, seconds = step + 1, time.monotonic() - started
        if done % 50 == 0:
            print(f"step {done} train {sum(recent) / len(recent):.3f} {seconds:.0f} s", flush=True)
        if done % checkpoint_every == 0 or done == recipe.steps:
            save_checkpoint(work, model, optimizers, {"step": done, "seconds": seconds, "made_of": made_of})
            print(f"step {done} held out {mean_loss(model, glance):.4f}", flush=True)

    export(model, tokenizer, out)
    rows = pack(documents)
    held_out_loss = exported_loss(out, held_out)
    held_out_bytes = sum(len(text.encode("utf-8")) for _, text in corpus.documents("held_out"))
    facts = {
        "held_out_loss": held_out_loss,
        "held_out_tokens": held_out[:, 1:].numel(),
        "held_out_bits_per_byte": held_out_loss / math.log(2) * sum(map(len, held_out_documents)) / held_out_bytes,
        "train_loss": exported_loss(out, rows[:: max(1, len(rows) // len(held_out))]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "context": CONTEXT,
        **asdict(recipe),
        "tokens": recipe.steps * recipe.rows * CONTEXT,
        "epochs": recipe.steps * recipe.rows * CONTEXT / corpus_tokens,
        "corpus_digest": corpus.digest(),
        "corpus_tokens": corpus_tokens,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
    }
    write_json(out / "training.json", facts)
    return facts


def batches(documents: list[Tensor], recipe: Recipe) -> Iterator[Tensor]:
    """Rows [recipe.rows, CONTEXT] of every step, without end."""
    for epoch in count():
        rows = pack(documents, torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch))
        for i in range(len(rows) // recipe.rows):
            yield rows[i * recipe.rows :][: recipe.rows]


def take_step(
    model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], rows: Tensor, step: int, recipe: Recipe
) -> float:
    """One update on the rows; their loss before it, nats per token."""
    model.train()
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout's
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, rows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sae_sweeps.builtin.train", description=__doc__)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER, help="default: the package's own folder")
    parser.add_argument("--work", type=Path, default=Path("outputs/builtin_model"), help="for the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args())
    out, work = arguments.pop("out"), arguments.pop("work")
    torch.set_num_threads(arguments.pop("threads"))
    print(json.dumps(train(Recipe(**arguments), work, out), indent=2))


if __name__ == "__main__":
    main()
