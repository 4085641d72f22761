"""Runs, dashboards and reports at W&B."""
