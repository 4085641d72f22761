"""How the command ended: 0 everything completed, 1 a run failed or diverged, 2 a mistake, 130 interrupted.

Hydra's sweeper hands nothing back from a launcher, so the launcher leaves the status here.
"""

status = 0
error: Exception | None = None
"""A mistake found inside Hydra's job, to be told outside of it."""
