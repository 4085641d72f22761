"""Documents -> rows of exactly `context` tokens, as SAELens' ActivationsStore makes them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.activations.document import Document
from sae_sweeps.activations.language_model import LanguageModel
from sae_sweeps.activations.text import documents
from sae_sweeps.config.schema import DataConfig, ModelConfig
from sae_sweeps.errors import ConfigError, DataError

_TOKENISED_TOGETHER = 2**17
"""Characters per call of the tokenizer, which works on their documents in parallel."""


@dataclass(frozen=True)
class Context:
    """One row that the language model reads at once."""

    tokens_L: np.ndarray
    """Vocabulary ids [context], int32."""
    role_L: np.ndarray
    """Role of the document that each token comes from [context], int8; a BOS has the role of the token after it."""
    length: int
    """Tokens that are text; those after them pad the row."""


def contexts(docs: Iterable[Document], lm: LanguageModel, cfg: DataConfig) -> Iterator[Context]:
    """Packs documents into rows without padding; the last, partial row is dropped.

    Documents are tokenised without special tokens and concatenated with BOS between them. With `cfg.prepend_bos` each
    row starts with BOS too; without it only the boundaries between documents are marked. A BOS that the text itself has
    is not doubled.
    """
    check_context(lm, cfg)
    row: list[int] = []
    roles: list[int] = []
    for tokens, role in _tokenised(docs, lm):
        offset = 0
        while offset < len(tokens):
            needs_bos = cfg.prepend_bos if not row else offset == 0
            if needs_bos and lm.bos_id is not None and tokens[offset] != lm.bos_id:
                row.append(lm.bos_id)
            taken = tokens[offset : offset + cfg.context - len(row)]
            row += taken
            offset += len(taken)
            roles += [role] * (len(row) - len(roles))
            if len(row) == cfg.context:
                yield Context(np.array(row, np.int32), np.array(roles, np.int8), cfg.context)
                row, roles = [], []


def paired_contexts(docs: Iterable[Document], lm: LanguageModel, cfg: DataConfig) -> Iterator[Context]:
    """Rows 2n and 2n + 1 are the two texts of pair n, each cut to one row and padded on the right with special tokens.

    Both rows have as many tokens as the shorter text, so that each token has a partner at its position.
    """
    check_context(lm, cfg)
    fill = lm.bos_id if lm.bos_id is not None else min(lm.special_ids, default=0)
    start = [lm.bos_id] if cfg.prepend_bos and lm.bos_id is not None else []
    for group in _grouped(docs):
        texts = [text for doc in group for text in (doc.text, doc.pair or "")]
        ids = lm.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for doc, first, second in zip(group, ids[::2], ids[1::2], strict=True):
            length = min(len(first), len(second), cfg.context - len(start))
            for tokens in (first, second) if length else ():
                row = [*start, *tokens[:length]]
                filled = row + [fill] * (cfg.context - len(row))
                role_L = np.full(cfg.context, doc.role, np.int8)
                yield Context(np.array(filled, np.int32), role_L, len(row))


def rows_of(cfg: DataConfig, split: str, lm: LanguageModel) -> Iterator[Context]:
    """The contexts of a split, packed, or one for each text where the text comes in pairs."""
    make = paired_contexts if cfg.has_pairs() else contexts
    return make(documents(cfg, split), lm, cfg)


def held_out_contexts(model_cfg: ModelConfig, data_cfg: DataConfig, lm: LanguageModel, n_contexts: int) -> Tensor:
    """The first `n_contexts` rows of the held-out text [S, L], int64; fewer if the text ends before.

    Raises:
        DataError: the held-out text does not fill one row.
    """
    rows = [c.tokens_L for c in islice(rows_of(data_cfg, "held_out", lm), n_contexts)]
    if not rows:
        raise DataError(
            f"data={data_cfg.name}: the held-out text of model={model_cfg.name} does not fill one context of "
            f"{data_cfg.context} tokens; give more text, raise data.held_out or lower data.context."
        )
    return torch.from_numpy(np.stack(rows)).long()


def check_context(lm: LanguageModel, cfg: DataConfig) -> None:
    if cfg.context < 2:
        raise ConfigError(f"data.context={cfg.context} leaves no room for text; choose at least 2.")
    if lm.max_context is not None and cfg.context > lm.max_context:
        raise ConfigError(f"data.context={cfg.context}: the model reads at most {lm.max_context} tokens at once.")
    if cfg.prepend_bos and lm.bos_id is None:
        raise ConfigError("data.prepend_bos=true: the tokenizer has neither BOS nor EOS; give data.prepend_bos=false.")


def _tokenised(docs: Iterable[Document], lm: LanguageModel) -> Iterator[tuple[list[int], int]]:
    for group in _grouped(docs):
        texts = [doc.text for doc in group]
        ids = lm.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        yield from zip(ids, (doc.role for doc in group), strict=True)


def _grouped(docs: Iterable[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for doc in docs:
        group.append(doc)
        size += len(doc.text)
        if size >= _TOKENISED_TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group
