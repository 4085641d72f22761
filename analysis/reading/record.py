"""A run as its folder or an import describes it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ABSENT = float("nan")
"""In a column of a run that has no such key or metric; a key that is null is None."""
RUN_FIELDS = (
    "run_id", "title", "state", "step", "total_steps", "error", "warnings", "folder", "source", "provenance",
    "description", "nulls", "not_finite", "recorded", "submodule_name",
)  # fmt: skip
UNTRAINED = "untrained"
"""The state of an imported run of 0 steps: what it shows are its initial weights."""
UNRECORDED = "unrecorded"
"""The state of an imported run of which the notes have neither steps nor a result."""
LOST = "lost?"
"""The state of a run that is recorded as running although no living process has its lease."""


@dataclass
class Study:
    """What a file of notes has beside its runs."""

    title: str = ""
    """Of the study, as the notes give it (`# Title: ...`)."""
    experiment: str = ""
    """The description of the experiment (`# Experiment description: ...`), in one line."""
    passages: list[dict[str, Any]] = field(default_factory=list)
    """Text outside runs, in order: {"heading", "text" (one line), "line"}; of figures, plans, conclusions."""


@dataclass
class Recorded:
    """What the notes have of one run that neither its config nor its metrics hold.

    Beside it, in the record itself: `config` has the value that was used (`lr_schedule.lr`,
    `architecture.l1_penalty`) and, where the results log one too, the logged one (`lr_schedule.lr_logged`,
    `architecture.l1_penalty_logged`); `layer.index` is the layer of the training, `eval.NAME.layer` and
    `eval.NAME.model` are those of each evaluation that names them (NAME as in `eval.evaluations`: core, absorption,
    scr, tpp, sparse_probing, unlearning, autointerp). `metrics` has a number under its present name; a name without one
    is in `nulls`, and also in `not_finite` where the notes have nan or an infinity rather than None. `state` is
    diverged (final_loss is not finite), untrained (0 steps), unrecorded (neither steps nor a result) or completed.
    """

    line: int = 0
    """Of the run's heading in the file, from 1; 0 where it has none."""
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each evaluation NAME whose dict is in the notes: `layer` (int), `hook` (hook_name), `model`, `eval_id`,
    `time_ms` (since 1970), `commit` (of SAEBench), `line`, `metrics` (the names that it gave) and `settings` (its
    eval_config, as it is); only what the notes have."""
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Per-class detail: evaluation NAME -> its eval_result_details, one dict for each letter, data set or pair."""
    readings: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Every distinct value that the notes give one figure of this run, in their order, where there is more than one, or
    one that text gives: name of the config key or metric -> [{"value" (None for None, "nan", "inf" or "-inf" for what
    is not finite), "line", "text" (the phrase, or the dotted place in a dict), "in" (dict or text)}]. The first value
    of a dict is the record's, or else the first of the text; one that is it rounded does not contradict it."""
    contradictions: list[str] = field(default_factory=list)
    """Names in `readings` whose values do not agree within rounding; those between two dicts are sentences among
    `warnings` too. A used and a logged learning rate are two figures and never one of these."""
    remarks: dict[str, str] = field(default_factory=dict)
    """What the notes add to a figure (`- Training loss: 204.4 (a little higher)`): its name -> those words."""
    unread: list[dict[str, Any]] = field(default_factory=list)
    """What looks like a figure of the run and could not be read: {"line", "text", "why"}; never guessed."""
    own: dict[str, Any] = field(default_factory=dict)
    """Of a run whose notes this project wrote: `run_id`, `step`, `total_steps` and `error` of the run that they are
    about, the `findings` of the audit that they list and, of metrics of evaluations from outside, how they are
    `described`; only what the notes have."""
    counted: bool = False
    """Whether the metric `steps` is the run's number of steps, and no metric of the notes."""
    moved: str = ""
    """Where results were under another run's heading: why they are this run's, in a sentence."""
    study: Study = field(default_factory=Study)
    """Of the file: the same object for all of its runs."""


@dataclass
class Record:
    """One run as its folder or its import describes it."""

    run_id: str
    folder: Path
    title: str | None = None
    state: str = "queued"
    step: int | None = None
    total_steps: int | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Empty unless the run is completed: an unfinished or diverged run has no result. What was imported is kept."""
    source: str = "run"
    """`run` for a run folder; for imported records where they come from (`as reported in notes.txt`)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    description: str | None = None
    """What the run is for and what came out, in its author's words."""
    nulls: list[str] = field(default_factory=list)
    """Metrics that are recorded without a number: not measured, or not finite."""
    not_finite: list[str] = field(default_factory=list)
    """Those of `nulls` that are recorded as nan or an infinity; of run folders, whose files hold neither, empty."""
    recorded: Recorded | None = None
    """Of a run read from notes or figures: what else they have of it."""

    @property
    def submodule_name(self) -> str | None:
        """Where in the model it reads, as records write it: `resid_post_layer_19`."""
        return self.config.get("submodule_name") or submodule_name(self.config)


def submodule_name(config: dict[str, Any]) -> str | None:
    """Where in the model a run reads, from its config: `resid_post_layer_19`."""
    hook, layer = config.get("layer.hook"), config.get("layer.index")
    return None if None in (hook, layer) else f"{hook}_layer_{layer}"
