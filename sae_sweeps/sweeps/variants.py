"""An experiment's variants: baselines, ablations and grids side by side, each the words of a command.

    study:
      gemma-2-2b: layer=12 data=openwebtext eval=full k=320
    variants:
      TopK: architecture=topk penalty=none
      Run 1:
        name: progressive, k 40
        words: architecture=topk penalty=ortho lr=2e-4
        recorded: k=40 num_tokens=999424
        description: In the record 488 steps, a fifth of the baseline's.

Every point of the command is run in every variant. `study` holds for all of them on the model it names, where neither
the command nor the variant gives the key. A key on the command line wins over a variant of words alone. Those of a
mapping are pinned: the command's word for such a key does not reach the variant, and the plan names it. `recorded`,
`planned` or `own` are further pinned words on the study's own model. A recorded run is titled "Run 1, as recorded:
NAME" there and "Run 1, scaled: NAME" elsewhere, a planned one "Run 1, planned: NAME"; their tags are as_recorded,
scaled and planned. `only` chooses variants by their titles. `arms` is an older name of `variants`.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config.aliases import variants_of
from sae_sweeps.config.keys import TOP_KEYS
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import Point, split_override

ON_OWN_MODEL = ("recorded", "planned", "own")
KEYS = ("words", *ON_OWN_MODEL, "name", "description")
SCALED = "Scaled: budget, d_sae and k are not the record's."
CHOSEN_BY = {
    "architecture": ("architecture",),
    "lr_schedule": ("lr_schedule",),
    "schedule": ("schedule", "penalty"),
    "group_layer": ("group_layer", "penalty"),
}
"""Groups that a variant pins with every key by one of these words: another choice has other keys."""


@dataclass
class Variant:
    """A variant of an experiment on the model of one point."""

    title: str
    words: dict[str, list[str]]
    """The overrides of each key, one or several for a sweep."""
    pinned: bool = False
    """Whether they win over the command's."""
    tags: list[str] = field(default_factory=list)
    description: str = ""


def points_of(overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> list[Point]:
    """One point of the command's product as it is without variants, else as one or more points for each variant."""
    cfg = compose(overrides)
    found = variants_of(cfg)
    if not found:
        if cfg.get("only") is not None:
            raise ConfigError(f"only={cfg.only}: chooses variants of an experiment, and this command has none.")
        return [Point(cfg, overrides)]
    study = cfg.get("study", {}).get(str(cfg.model.name).rstrip("_"))  # a folder of that name is called NAME_
    own = [] if study is None else [words[0] for words in choices_of("study", study).values()]
    if own:  # the variants' words may refer to its values
        found = variants_of(compose([*_below(own, set(map(_key, overrides))), *overrides]))
    variants = [variant_of(str(name), node, study is not None) for name, node in found.items()]
    return [
        point for variant in chosen(variants, cfg.get("only")) for point in _points(variant, overrides, own, compose)
    ]


def _points(
    variant: Variant, overrides: list[str], study: list[str], compose: Callable[[list[str]], DictConfig]
) -> Iterator[Point]:
    refused = {word: kept for word in overrides if variant.pinned and (kept := _kept(variant, word)) is not None}
    taken = [word for word in overrides if word not in refused]
    given = set(map(_key, taken))
    lists = [choices for key, choices in variant.words.items() if variant.pinned or key not in given]
    given |= {_key(choices[0]) for choices in lists}
    taken = [word for word in taken if not variant.pinned or _key(word) not in variant.words]
    rest = _below(study, given)
    for words in itertools.product(*lists):
        all_words = [*rest, *taken, *words]
        yield Point(
            compose(all_words), all_words, variant.title, study=rest, pinned=list(words) if variant.pinned else [],
            refused=refused, description=variant.description, tags=variant.tags,
        )  # fmt: skip


def _below(study: list[str], given: set[str]) -> list[str]:
    """The words of a study that `given` keys leave: a choice made for a group takes the study's keys of it along."""
    return [word for word in study if _key(word) not in given and _group(word) not in CHOSEN_BY.keys() & given]


def _kept(variant: Variant, word: str) -> str | None:
    """What a variant keeps in place of a word of the command; None where it takes the word."""
    key = _key(word)
    if key in variant.words:
        choices = variant.words[key]
        same = len(choices) == 1 and _value(choices[0]) == _value(word)
        values = ",".join(split_override(choice)[1] for choice in choices)
        return None if same else f"{split_override(choices[0])[0]}={values}"
    if key in TOP_KEYS:
        return None
    return next((variant.words[name][0] for name in CHOSEN_BY.get(_group(word), ()) if name in variant.words), None)


def _group(word: str) -> str:
    return split_override(word)[0].partition(".")[0]


def _key(word: str) -> str:
    """The key of a word; a key of a group that the top level has too, such as `lr_schedule.lr`, by that name."""
    key = split_override(word)[0]
    group, _, leaf = key.rpartition(".")
    return leaf if leaf in TOP_KEYS and group in ("architecture", "penalty", "schedule", "lr_schedule") else key


def _value(word: str) -> float | str:
    text = split_override(word)[1].strip("'\"")
    try:
        return float(text)
    except ValueError:
        return text


def variant_of(name: str, node: Any, own: bool) -> Variant:
    """A variant as its file has it: words, or a mapping; `own` on the study's own model. Raises ConfigError."""
    if not isinstance(node, DictConfig):
        return Variant(name, choices_of(name, str(node)))
    parts: dict[str, Any] = {str(key): value for key, value in node.items()}
    for key, value in parts.items():
        if key not in KEYS:
            raise ConfigError(f"variants.{name}.{key}: no such key; a variant has {', '.join(KEYS)}.")
        if OmegaConf.is_config(value):
            raise ConfigError(f"variants.{name}.{key}: must be text.")
    kinds = [key for key in ON_OWN_MODEL if key in parts]
    if len(kinds) > 1:
        raise ConfigError(f"variants.{name}: has {' and '.join(kinds)}; give one.")
    words = " ".join(str(parts.get(key) or "") for key in ("words", *(kinds if own else ())))
    tags = {"recorded": ["as_recorded"] if own else ["scaled"], "planned": ["planned"]}.get("".join(kinds), [])
    title = ", ".join([name, *(tag.replace("_", " ") for tag in tags)])
    return Variant(
        title + (f": {parts['name']}" if parts.get("name") else ""),
        choices_of(name, words),
        pinned=True,
        tags=tags,
        description=" ".join([*str(parts.get("description") or "").split(), *([SCALED] if tags and not own else [])]),
    )


def choices_of(variant: str, words: str) -> dict[str, list[str]]:
    """The overrides of each key of a variant's words: one, or one for each value of a sweep. The last word of a key
    holds."""
    out = {}
    try:
        parts = rewrite(shlex.split(words))
    except ValueError:
        raise ConfigError(f"variants.{variant}: `{words}` has a quotation mark without its second one.") from None
    for word in parts:
        if "=" not in word:
            raise ConfigError(f"variants.{variant}: `{word}` is not a word of the form key=value.")
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            raise ConfigError(f"variants.{variant}: `{word}` cannot be read as key=value; quote its value.") from None
        values = (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
        out[_key(word)] = [f"{override.get_key_element()}={value}" for value in values]
    return out


def chosen(variants: list[Variant], only: str | None) -> list[Variant]:
    """The variants whose titles match one of the patterns, split at `|`; those after `~` are left out.

    Titles are compared without regard to case; a pattern may be their beginning up to a comma or colon. Raises
    ConfigError for a pattern that matches no title, and where no variant is left.
    """
    if only is None:
        return variants
    titles = [variant.title for variant in variants]
    wanted: set[str] = set()
    unwanted: set[str] = set()
    for pattern in filter(None, map(str.strip, only.split("|"))):
        words = pattern.removeprefix("~").strip().lower()
        matching = {title for title in titles if title.lower() == words}
        matching = matching or {title for title in titles if _matches(title.lower(), words)}
        if not matching:
            raise ConfigError(f"only={only}: no variant's title matches {pattern}; they are {'; '.join(titles)}.")
        (unwanted if pattern.startswith("~") else wanted).update(matching)
    found = [variant for variant in variants if variant.title in (wanted or titles) and variant.title not in unwanted]
    if not wanted | unwanted:
        raise ConfigError(f"only={only}: has no pattern; give titles of variants, as in only='Run *|TopK'.")
    if not found:
        raise ConfigError(f"only={only}: leaves no variant; they are {'; '.join(titles)}.")
    return found


def _matches(title: str, pattern: str) -> bool:
    """Whether a pattern matches the whole title or its beginning up to a comma or colon."""
    ends = [len(title), *(found.start() for found in re.finditer("[,:]", title))]
    return any(fnmatchcase(title[:end], pattern) for end in ends)
