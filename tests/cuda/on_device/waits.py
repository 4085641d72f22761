"""Where a plain step still waits for the device: "file function"."""

KNOWN: set[str] = set()
"""An entry that no longer occurs fails a test."""
