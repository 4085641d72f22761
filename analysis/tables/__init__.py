"""Runs compared: a row each, or aggregated."""
