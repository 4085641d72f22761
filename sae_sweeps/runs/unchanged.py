"""Whether a run's model and text are still those that it was planned with: checked before either is read again."""

from __future__ import annotations

from pathlib import Path

from sae_sweeps.config.identity import IDENTITY, canonical, changed, digests_of, recorded_identity
from sae_sweeps.config.run import RunConfig
from sae_sweeps.errors import DataError
from sae_sweeps.storage.digests import short_hash
from sae_sweeps.storage.files import write_json
from sae_sweeps.storage.run_folder import RunFolder
from sae_sweeps.sweeps.plan import PlannedRun


def record_identity(planned: PlannedRun, folder: RunFolder) -> None:
    """Write identity.json, whose hash is the run id. Raises DataError where the run is no longer what was planned."""
    run = planned.run
    identity = canonical(run, digests_in(Path(run.outputs)))
    if short_hash(identity) != planned.run_id:
        raise DataError(
            changed(run, planned.digests, digests_of(identity))
            or "the code of this project or of the run has changed since it was planned; launch the command again."
        )
    write_json(folder.path / IDENTITY, identity)


def refuse_changed(run: RunConfig, folder: Path, outputs: Path) -> str | None:
    """Raise DataError, in one sentence, where the run's model or text is not what it was trained on.

    Returns a warning where that is not known: for runs of earlier versions, without identity.json and with another id
    than their config has now.
    """
    now = canonical(run, digests_in(outputs))
    if (before := recorded_identity(folder)) is not None:
        if why := changed(run, digests_of(before), digests_of(now)):
            raise DataError(f"{folder.resolve().name}: {why}")
        return None
    if short_hash(now) == folder.resolve().name:
        return None
    return (
        "the model and the text may be others than it was trained on: an earlier version made it and did not record "
        f"their digests, and its id is not that of its config now (digests now: {', '.join(digests_of(now).values())})"
    )


def digests_in(outputs: Path) -> Path:
    """Where the digests of large files are remembered."""
    return outputs / "activations" / "digests"
