"""An experiment's variants: baselines, ablations and grids side by side, each the words of a command.

    variants:
      TopK, no penalty: penalty=none
      progressive: penalty=ortho lambda2_max=0.1,0.5,1.0

Every point of the command is run in every variant. A key on the command line wins over the variants' own. `arms` is an
older name of the same key.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from sae_sweeps.config.aliases import variants_of
from sae_sweeps.config.words import rewrite
from sae_sweeps.errors import ConfigError
from sae_sweeps.sweeps.plan import Point, split_override


def points_of(overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> list[Point]:
    """One point of the command's product as it is without variants, else as one or more points for each variant."""
    cfg = compose(overrides)
    variants = variants_of(cfg)
    if not variants:
        return [Point(cfg, overrides)]
    given = {split_override(override)[0] for override in overrides}
    points = []
    for variant, words in variants.items():
        lists = [choices for choices in choices_of(variant, words) if split_override(choices[0])[0] not in given]
        fixed = [split_override(choices[0])[0] for choices in lists if len(choices) == 1]
        for chosen in itertools.product(*lists):
            both = [*overrides, *chosen]
            points.append(Point(compose(both), both, variant, fixed))
    return points


def choices_of(variant: str, words: str) -> list[list[str]]:
    """For each word of a variant its overrides: one, or one for each value of a sweep."""
    out = []
    for word in rewrite(shlex.split(words)):
        if "=" not in word:
            raise ConfigError(f"variants.{variant}: `{word}` is not a word of the form key=value.")
        override = OverridesParser.create().parse_override(word)
        values = (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
        out.append([f"{override.get_key_element()}={value}" for value in values])
    return out
