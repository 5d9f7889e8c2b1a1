"""Rewards that are plain functions of one trajectory."""

from collections.abc import Callable

from actors.rewards import answer_match, length, math_verify, number_match, repetition, vader
from actors.rewards.ifeval import score as ifeval
from cluster.types import Trajectory

REWARD_FUNCTIONS: dict[str, Callable[[Trajectory], float]] = {
    "length": length.score,
    "repetition": repetition.score,
    "vader": vader.score,
    "answer_match": answer_match.score,
    "final_number": number_match.score_final,
    "first_number": number_match.score_first,
    "math_verify": math_verify.score,
    "ifeval": ifeval.score,
    "ifeval_strict": ifeval.score_strict,
}
