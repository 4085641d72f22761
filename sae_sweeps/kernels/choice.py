"""Whether the penalties' compiled loops may run; their plain torch forms are the reference."""

REFERENCE = False
"""True: plain torch on the CPU too."""
