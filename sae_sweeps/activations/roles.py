"""Roles of tokens: text to forget and to retain, labelled text, and pairs of texts that belong together.

A token's role is that of its document: 0 plain, 1 retain, 2 forget, 3 and up labels. The labels `retain` and `forget`
are those roles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from sae_sweeps.errors import ConfigError

if TYPE_CHECKING:
    from sae_sweeps.activations.document import Document
    from sae_sweeps.config.schema import DataConfig

PLAIN, RETAIN, FORGET, FIRST_LABEL = 0, 1, 2, 3
NAMED = {"retain": RETAIN, "forget": FORGET}
MOST_LABELS = 127 - FIRST_LABEL
"""Roles are kept in a byte."""


def interleaved(forget: Iterator[Document], retain: Iterator[Document], share: float) -> Iterator[Document]:
    """Documents of both, so that `share` of the characters are to be forgotten; when one ends, the other continues."""
    sources = {FORGET: forget, RETAIN: retain}
    taken = {FORGET: 0.0, RETAIN: 0.0}
    while sources:
        behind = FORGET if taken[FORGET] * (1 - share) <= taken[RETAIN] * share else RETAIN
        role = behind if behind in sources else next(iter(sources))
        document = next(sources[role], None)
        if document is None:
            del sources[role]
            continue
        taken[role] += len(document.text)
        yield replace(document, role=role)


def label_names(cfg: DataConfig, values: Callable[[], Iterator[object]]) -> list[str]:
    """The labels in the order of their roles: `data.labels`, or all that a local source holds, sorted.

    `values` reads the label column from the start. Raises ConfigError for a hub source without `data.labels` and for
    more labels than roles.
    """
    if cfg.labels is not None:
        names = [str(name) for name in cfg.labels]
    elif cfg.kind == "hub":
        raise ConfigError(
            f"data.label_field={cfg.label_field}: labels of a hub data set must be listed, as data.labels=[a,b,c]."
        )
    else:
        names = sorted({str(value) for value in itertools.islice(values(), 10_000_000)} - set(NAMED))
    names = [name for name in names if name not in NAMED]
    if len(names) > MOST_LABELS:
        raise ConfigError(
            f"data.label_field={cfg.label_field}: {len(names)} labels are more than {MOST_LABELS}; name a column with "
            "fewer values, or keep the rows of some and list those, as data.labels=[a,b]."
        )
    return names
