"""Rewards that are plain functions of one trajectory."""

from collections.abc import Callable

from actors.rewards import answer_match, length, repetition, vader
from cluster.types import Trajectory

REWARD_FUNCTIONS: dict[str, Callable[[Trajectory], float]] = {
    "length": length.score,
    "repetition": repetition.score,
    "vader": vader.score,
    "answer_match": answer_match.score,
}
