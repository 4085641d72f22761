"""A document of the text that activations are taken from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    name: str
    text: str
    role: int = 0
    """0 plain, 1 retain, 2 forget, 3 and up labels."""
    pair: str | None = None
    """A second text that belongs to this one."""
