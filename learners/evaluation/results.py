"""How good a policy is on prompts that it was not trained on, and whether it got better honestly.

KL in nats, summed over a completion's tokens. Two judges: the score that PPO maximised, and a sentiment lexicon (VADER,
Hutto and Gilbert 2014) that it never saw. Standard deviations are those of the population (divided by n).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from cluster.errors import DataError

POSITIVE_COMPOUND = 0.05  # VADER's own threshold for positive text
MIN_STARTING_STD = 1e-6  # a policy whose completions all score alike

# What `verdicts` asks of a trained policy.
MIN_SCORE_GAIN_IN_STD = 0.5
MIN_SCORE_GAIN_IN_STANDARD_ERRORS = 2.0  # about 95 % sure that it is not chance
MAX_KL_NATS_PER_COMPLETION = 20.0
MIN_DISTINCT_2_KEPT_FRAC = 0.7
MAX_LENGTH_CHANGE_FRAC = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCompletion:
    """One judged completion. Produced by the driver and kept as `evaluation/*.json`, consumed by `evaluate_samples`."""

    prompt: str
    completion: str
    score: float  # of the scorer that PPO maximises
    vader_compound: float  # -1..1
    num_tokens: int
    kl_nats: float  # sum over the completion's tokens of log(policy / policy at the start)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """A policy in numbers. Produced by `evaluate_samples`, consumed by `compare`, summary.json and the report."""

    score_mean: float
    score_std: float
    positive_frac: float  # completions whose VADER compound is above POSITIVE_COMPOUND
    vader_compound_mean: float
    kl_nats_per_completion: float
    completion_tokens_mean: float
    distinct_2: float  # distinct word bigrams / all word bigrams, over all completions; after arXiv:1510.03055
    num_prompts: int  # distinct ones
    num_completions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One thing asked of a trained policy. Produced by `verdicts`, consumed by the report and by `rayward eval`."""

    question: str
    passed: bool
    found: str


def evaluate_samples(samples: Sequence[EvaluatedCompletion]) -> EvaluationResult:
    """Average over completions."""
    if not samples:
        raise DataError("no completions to evaluate; set evaluation.num_prompts to at least 1")
    score_mean = _mean([sample.score for sample in samples])
    return EvaluationResult(
        score_mean=score_mean,
        score_std=math.sqrt(_mean([(sample.score - score_mean) ** 2 for sample in samples])),
        positive_frac=_mean([float(sample.vader_compound > POSITIVE_COMPOUND) for sample in samples]),
        vader_compound_mean=_mean([sample.vader_compound for sample in samples]),
        kl_nats_per_completion=_mean([sample.kl_nats for sample in samples]),
        completion_tokens_mean=_mean([sample.num_tokens for sample in samples]),
        distinct_2=distinct_bigrams([sample.completion for sample in samples]),
        num_prompts=len({sample.prompt for sample in samples}),
        num_completions=len(samples),
    )


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Share of word bigrams that are distinct, over all texts, lower-cased, split at white space; 0 without bigrams."""
    bigrams = []
    for text in texts:
        words = text.lower().split()
        bigrams += list(pairwise(words))
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def compare(before: EvaluationResult, after: EvaluationResult) -> dict[str, float]:
    """Differences after - before. The standard error takes completions as independent."""
    gain = after.score_mean - before.score_mean
    return {
        "score_gain": gain,
        "score_gain_in_starting_std": gain / max(before.score_std, MIN_STARTING_STD),
        "score_gain_standard_error": math.hypot(_standard_error(before), _standard_error(after)),
        "positive_frac_gain": after.positive_frac - before.positive_frac,
        "vader_compound_gain": after.vader_compound_mean - before.vader_compound_mean,
        "kl_nats_per_completion_gain": after.kl_nats_per_completion - before.kl_nats_per_completion,
        "completion_tokens_gain": after.completion_tokens_mean - before.completion_tokens_mean,
        "distinct_2_gain": after.distinct_2 - before.distinct_2,
    }


def verdicts(before: EvaluationResult, after: EvaluationResult) -> list[Verdict]:
    """Did the score rise, does the other judge agree, and was the language kept?"""
    change: Mapping[str, float] = compare(before, after)
    in_std = change["score_gain_in_starting_std"]
    in_errors = change["score_gain"] / max(change["score_gain_standard_error"], MIN_STARTING_STD)
    length_frac = change["completion_tokens_gain"] / before.completion_tokens_mean
    kept_frac = after.distinct_2 / before.distinct_2 if before.distinct_2 else 1.0
    return [
        Verdict(
            question=f"Score rose by at least {MIN_SCORE_GAIN_IN_STD:g} starting standard deviations",
            passed=in_std >= MIN_SCORE_GAIN_IN_STD,
            found=f"{in_std:+.2f}",
        ),
        Verdict(
            question=f"The rise is at least {MIN_SCORE_GAIN_IN_STANDARD_ERRORS:g} standard errors",
            passed=in_errors >= MIN_SCORE_GAIN_IN_STANDARD_ERRORS,
            found=f"{in_errors:+.1f}",
        ),
        Verdict(
            question="The second judge agrees: VADER compound rose",
            passed=change["vader_compound_gain"] > 0,
            found=f"{change['vader_compound_gain']:+.2f}",
        ),
        Verdict(
            question=f"KL to the start is at most {MAX_KL_NATS_PER_COMPLETION:g} nats a completion",
            passed=after.kl_nats_per_completion <= MAX_KL_NATS_PER_COMPLETION,
            found=f"{after.kl_nats_per_completion:.1f}",
        ),
        Verdict(
            question=f"At least {MIN_DISTINCT_2_KEPT_FRAC:.0%} of the distinct bigrams are kept",
            passed=kept_frac >= MIN_DISTINCT_2_KEPT_FRAC,
            found=f"{kept_frac:.0%}",
        ),
        Verdict(
            question=f"Length changed by at most {MAX_LENGTH_CHANGE_FRAC:.0%}",
            passed=abs(length_frac) <= MAX_LENGTH_CHANGE_FRAC,
            found=f"{length_frac:+.0%}",
        ),
    ]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(result: EvaluationResult) -> float:
    """Of the mean score; a single completion counts as two, for want of a spread."""
    return result.score_std / math.sqrt(max(result.num_completions - 1, 1))
