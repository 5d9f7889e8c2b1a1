"""How much a completion repeats itself; give it a negative weight."""

from itertools import pairwise

from cluster.types import Trajectory


def score(trajectory: Trajectory) -> float:
    """Share of word bigrams that occurred before in the completion, 0..1; 0 where there is none. Upper and lower case agree."""
    bigrams = list(pairwise(trajectory.completion.text.casefold().split()))
    if not bigrams:
        return 0.0
    return 1.0 - len(set(bigrams)) / len(bigrams)
