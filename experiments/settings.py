"""The ranges of the experiments' settings, checked before a run begins."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Range(NamedTuple):
    """The values that a setting can have; a tuple's entries are checked one by one.

    Attributes:
      low: the smallest value.
      high: the largest value.
      low_excluded: whether `low` itself is not a value.
      high_excluded: whether `high` itself is not a value.
    """

    low: float
    high: float = math.inf
    low_excluded: bool = False
    high_excluded: bool = False

    def __contains__(self, value: Any) -> bool:
        above = value > self.low if self.low_excluded else value >= self.low
        below = value < self.high if self.high_excluded else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = f"more than {self.low:g}" if self.low_excluded else f"at least {self.low:g}"
        if math.isinf(self.high):
            return low
        return f"{low} and {'less than' if self.high_excluded else 'at most'} {self.high:g}"


COUNT, COUNT_OR_NONE, SHARE = Range(1), Range(0), Range(0, 1)
PART, POSITIVE = Range(0, 1, low_excluded=True), Range(0, low_excluded=True)
WEIGHT, DECAY = Range(0), Range(0, 1, high_excluded=True)
SEED = Range(0, 2**32 - 1)

_NAMES = (
    (
        COUNT,
        "batch_size blocks calls channel_base channel_max channels checkpoint_every dilations "
        "discriminator_width draws embedding evaluate_every every examples factor keep latent "
        "length log_every mapping_depth model repeat scale size steps waves width",
    ),
    (
        COUNT_OR_NONE,
        "data downs hints images keep_every layers patience pool samples shared strokes",
    ),
    (DECAY, "ema"),
    (SHARE, "alpha final_rate largest_box smallest_box teacher_images thickness"),
    (PART, "fraction"),
    (POSITIVE, "d_rate discriminator g_rate generator rate sigma strengths temperature"),
    (SEED, "seed seeds"),
    (
        WEIGHT,
        "adversarial attention cycle feature features identity matching noise pixel r1 relation "
        "response soft_label strength teacher truth weight",
    ),
)
RANGES = {name: values for values, names in _NAMES for name in names.split()}
"""The range of each numeric setting, by the last part of its name."""


def numbers(config: Mapping[str, Any], path: str = "config") -> Iterator[tuple[str, Any]]:
    """The numeric settings of a configuration and the entries of tuples, by their full names."""
    for name, value in config.items():
        full = f"{path}.{name}"
        if isinstance(value, Mapping | ConfigDict):
            yield from numbers(value, full)
            continue
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, int | float) and not isinstance(entry, bool):
                yield full, entry


def check_ranges(config: ConfigDict) -> None:
    """Checks that every numeric setting is within its range.

    Raises:
      ValueError: the first one that is not; a one-line message.
    """
    for name, value in numbers(config):
        values = RANGES.get(name.rpartition(".")[2])
        if values is not None and value not in values:
            raise ValueError(f"{name}={value} is not {values}")
    seeds = config.get("seeds", ())
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"config.seeds={tuple(seeds)} has a seed twice")
