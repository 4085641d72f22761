"""Judging trained SAEs on held-out text: one file per evaluation, shared activations."""
