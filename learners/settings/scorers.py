"""The scorers of a run, each with a name of its own."""

from typing import Annotated

from pydantic import AfterValidator, Field

from actors.config import ScorerConfig

MEANS_OF_ALL_SCORERS = ("sampled", "greedy")  # of what was sampled, and of greedy baselines


def _names_differ(scorers: tuple[ScorerConfig, ...]) -> tuple[ScorerConfig, ...]:
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names):
        raise ValueError(f"two scorers share a name: {names}; the reward breakdown needs one name each")
    for name in names:
        if name in MEANS_OF_ALL_SCORERS:
            raise ValueError(f"a scorer is named {name!r}, but the metric score/{name}_mean is that of all scorers; rename it")
    return scorers


ScorerConfigs = Annotated[tuple[ScorerConfig, ...], Field(min_length=1), AfterValidator(_names_differ)]
