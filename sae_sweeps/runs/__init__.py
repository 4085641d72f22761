"""Executing runs: harvest, training, evaluation and results, in groups that share one process."""
