"""How good a policy is on prompts that it was not trained on, and whether it got better honestly.

KL in nats, summed over a completion's tokens. The score is what was trained on; judges are functions that were not. Standard
deviations are those of the population (divided by n).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from cluster.errors import DataError
from cluster.storage.atomic_file import write_atomically
from learners.settings.evaluation import EvaluationConfig, JudgeConfig, VerdictConfig

MIN_STARTING_STD = 1e-6  # a policy whose completions all score alike


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedCompletion:
    """One judged completion. Produced by `Evaluator` and kept as `evaluation/*.json`, consumed by `evaluate_samples`."""

    prompt: str
    completion: str
    score: float  # of the scorers that are trained on
    judgements: Mapping[str, float]  # by a judge's function
    num_tokens: int
    kl_nats: float  # sum over the completion's tokens of log(policy / policy at the start)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationResult:
    """A policy in numbers. Produced by `evaluate_samples`, consumed by `compare`, summary.json and the report."""

    score_mean: float
    score_std: float
    judge_means: Mapping[str, float]  # by a judge's function
    judge_shares: Mapping[str, float]  # completions above the judge's `share_above`; only of judges that have one
    kl_nats_per_completion: float
    completion_tokens_mean: float
    distinct_2: float  # distinct word bigrams / all word bigrams, over all completions; after arXiv:1510.03055
    num_prompts: int  # distinct ones
    num_completions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One thing asked of a trained policy. Produced by `verdicts`, consumed by the report."""

    question: str
    passed: bool
    found: str


def evaluate_samples(samples: Sequence[EvaluatedCompletion], judges: Sequence[JudgeConfig]) -> EvaluationResult:
    """Average over completions."""
    if not samples:
        raise DataError("no completions to evaluate; set evaluation.num_prompts to at least 1")
    score_mean = _mean([sample.score for sample in samples])
    judgements = {judge.function: [sample.judgements[judge.function] for sample in samples] for judge in judges}
    return EvaluationResult(
        score_mean=score_mean,
        score_std=math.sqrt(_mean([(sample.score - score_mean) ** 2 for sample in samples])),
        judge_means={name: _mean(values) for name, values in judgements.items()},
        judge_shares={
            judge.function: _mean([float(value > judge.share_above) for value in judgements[judge.function]])
            for judge in judges
            if judge.share_above is not None
        },
        kl_nats_per_completion=_mean([sample.kl_nats for sample in samples]),
        completion_tokens_mean=_mean([sample.num_tokens for sample in samples]),
        distinct_2=distinct_bigrams([sample.completion for sample in samples]),
        num_prompts=len({sample.prompt for sample in samples}),
        num_completions=len(samples),
    )


def write_samples(path: Path, samples: Sequence[EvaluatedCompletion]) -> None:
    """As JSON, for reports."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps([asdict(sample) for sample in samples], indent=1))


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
        **{f"{name}_mean_gain": after.judge_means[name] - mean for name, mean in before.judge_means.items()},
        **{f"{name}_share_gain": after.judge_shares[name] - share for name, share in before.judge_shares.items()},
        "kl_nats_per_completion_gain": after.kl_nats_per_completion - before.kl_nats_per_completion,
        "completion_tokens_gain": after.completion_tokens_mean - before.completion_tokens_mean,
        "distinct_2_gain": after.distinct_2 - before.distinct_2,
    }


def verdicts(before: EvaluationResult, after: EvaluationResult, config: EvaluationConfig) -> list[Verdict]:
    """Did the score rise, do the judges agree, and was the language kept? As far as the configuration asks."""
    asked = config.verdicts
    return [
        *_about_the_score(before, after, asked),
        *_about_the_judges(before, after, config),
        *_about_the_cost(before, after, asked),
    ]


def _about_the_score(before: EvaluationResult, after: EvaluationResult, asked: VerdictConfig) -> list[Verdict]:
    change = compare(before, after)
    found = []
    if (least := asked.min_score_gain_in_starting_std) is not None:
        in_std = change["score_gain_in_starting_std"]
        question = f"Score rose by at least {least:g} starting standard deviations"
        found.append(Verdict(question=question, passed=in_std >= least, found=f"{in_std:+.2f}"))
    if (least := asked.min_score_gain_in_standard_errors) is not None:
        in_errors = change["score_gain"] / max(change["score_gain_standard_error"], MIN_STARTING_STD)
        question = f"The rise is at least {least:g} standard errors"
        found.append(Verdict(question=question, passed=in_errors >= least, found=f"{in_errors:+.1f}"))
    return found


def _about_the_judges(before: EvaluationResult, after: EvaluationResult, config: EvaluationConfig) -> list[Verdict]:
    if not config.verdicts.judges_agree:
        return []
    gains = [(judge.shown, after.judge_means[judge.function] - before.judge_means[judge.function]) for judge in config.judges]
    return [Verdict(question=f"{judge} agrees: its mean rose", passed=gain > 0, found=f"{gain:+.2f}") for judge, gain in gains]


def _about_the_cost(before: EvaluationResult, after: EvaluationResult, asked: VerdictConfig) -> list[Verdict]:
    found = []
    if (most := asked.max_kl_nats_per_completion) is not None:
        kl_nats = after.kl_nats_per_completion
        question = f"KL to the start is at most {most:g} nats a completion"
        found.append(Verdict(question=question, passed=kl_nats <= most, found=f"{kl_nats:.1f}"))
    if (least := asked.min_distinct_2_kept_frac) is not None:
        kept_frac = after.distinct_2 / before.distinct_2 if before.distinct_2 else 1.0
        question = f"At least {least:.0%} of the distinct bigrams are kept"
        found.append(Verdict(question=question, passed=kept_frac >= least, found=f"{kept_frac:.0%}"))
    if (most := asked.max_length_change_frac) is not None:
        length_frac = (after.completion_tokens_mean - before.completion_tokens_mean) / before.completion_tokens_mean
        question = f"Length changed by at most {most:.0%}"
        found.append(Verdict(question=question, passed=abs(length_frac) <= most, found=f"{length_frac:+.0%}"))
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(result: EvaluationResult) -> float:
    """Of the mean score; a single completion counts as two, for want of a spread."""
    return result.score_std / math.sqrt(max(result.num_completions - 1, 1))
