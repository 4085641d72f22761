"""Runs read from their folders: tables, notes, an audit, figures, a report, W&B. Loads no torch."""
