"""Evaluation numbers, computed by hand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from pydantic import ValidationError

from cluster.errors import DataError
from learners.evaluation.results import (
    EvaluatedCompletion,
    EvaluationResult,
    compare,
    distinct_bigrams,
    evaluate_samples,
    verdicts,
)
from learners.settings.evaluation import EvaluationConfig, JudgeConfig

VADER = JudgeConfig(function="vader", title="VADER sentiment", share_above=0.05)
ALL_ASKED = EvaluationConfig.model_validate(
    {"judges": [VADER], "verdicts": {"min_distinct_2_kept_frac": 0.7, "max_length_change_frac": 0.5}}
)


def sample(score: float, *, prompt: str = "p", completion: str = "a b c", vader: float = 0.0) -> EvaluatedCompletion:
    return EvaluatedCompletion(
        prompt=prompt, completion=completion, score=score, judgements={"vader": vader}, num_tokens=4, kl_nats=0.0
    )


def evaluated(samples: Sequence[EvaluatedCompletion]) -> EvaluationResult:
    return evaluate_samples(samples, [VADER])


def test_averages_by_hand() -> None:
    first, second = sample(1.0, completion="a b a b", vader=0.05), sample(3.0, completion="A B", vader=0.06)
    result = evaluated([replace(first, kl_nats=-1.0), replace(second, num_tokens=8, kl_nats=4.0)])
    assert (result.score_mean, result.score_std) == (2.0, 1.0)
    assert result.judge_shares == {"vader": 0.5}  # 0.05 itself is not above it
    assert result.judge_means == {"vader": pytest.approx(0.055)}
    assert (result.kl_nats_per_completion, result.completion_tokens_mean) == (1.5, 6.0)
    assert result.distinct_2 == 0.5  # ab ba ab | ab: two of four
    assert (result.num_prompts, result.num_completions) == (1, 2)


def test_only_judges_with_a_threshold_have_a_share_and_a_task_without_judges_has_none() -> None:
    samples = [sample(1.0, vader=0.5)]
    result = evaluate_samples(samples, [JudgeConfig(function="vader")])
    assert (result.judge_means, result.judge_shares) == ({"vader": 0.5}, {})
    assert evaluate_samples(samples, []).judge_means == {}


def test_a_judge_is_named_once() -> None:
    with pytest.raises(ValidationError, match="name each function once"):
        EvaluationConfig(judges=(VADER, VADER))


def test_bigrams_do_not_cross_completions_and_short_texts_have_none() -> None:
    assert distinct_bigrams(["a", "b", ""]) == 0.0
    assert distinct_bigrams(["a b", "b a"]) == 1.0


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="num_prompts"):
        evaluated([])


def test_compare_measures_the_gain_in_starting_standard_deviations() -> None:
    before = evaluated([sample(-2.0), sample(2.0)])  # mean 0, std 2
    after = evaluated([sample(2.0, vader=0.5), sample(4.0)])  # mean 3, std 1
    change = compare(before, after)
    assert change["score_gain"] == 3.0
    assert change["score_gain_in_starting_std"] == 1.5
    assert change["score_gain_standard_error"] == pytest.approx(5**0.5)  # sqrt(2^2 / 1 + 1^2 / 1)
    assert (change["vader_share_gain"], change["vader_mean_gain"]) == (0.5, 0.25)
    assert (change["completion_tokens_gain"], change["distinct_2_gain"]) == (0.0, 0.0)


def test_a_policy_compared_with_itself_gains_nothing_even_without_spread() -> None:
    same = evaluated([sample(1.0), sample(1.0)])
    assert set(compare(same, same).values()) == {0.0}


def test_verdicts_pass_an_honest_gain_and_catch_each_way_to_cheat() -> None:
    before = replace(evaluated([sample(-1.0), sample(1.0)] * 32), distinct_2=0.8)
    honest = replace(before, score_mean=1.0, judge_means={"vader": 0.4}, kl_nats_per_completion=5.0)
    assert [verdict.passed for verdict in verdicts(before, honest, ALL_ASKED)] == [True] * 6
    cheats = [
        replace(honest, score_mean=0.4),
        replace(honest, judge_means={"vader": -0.1}),
        replace(honest, kl_nats_per_completion=21.0),
        replace(honest, distinct_2=0.5),
        replace(honest, completion_tokens_mean=1.0),
    ]
    failed = [
        [index for index, verdict in enumerate(verdicts(before, cheat, ALL_ASKED)) if not verdict.passed] for cheat in cheats
    ]
    assert failed == [[0], [2], [3], [4], [5]]
    unsure = evaluated([sample(-1.0), sample(1.0)])
    assert not verdicts(unsure, replace(unsure, score_mean=1.0), ALL_ASKED)[1].passed  # two completions prove nothing


def test_what_is_not_asked_is_no_verdict() -> None:
    result = evaluated([sample(-1.0), sample(1.0)])
    plain = [verdict.question for verdict in verdicts(result, result, EvaluationConfig())]
    assert [question.split()[0] for question in plain] == ["Score", "The", "KL"]  # neither length nor bigrams nor a judge
    nothing = {
        "min_score_gain_in_starting_std": None,
        "min_score_gain_in_standard_errors": None,
        "judges_agree": False,
        "max_kl_nats_per_completion": None,
    }
    assert verdicts(result, result, EvaluationConfig.model_validate({"judges": [VADER], "verdicts": nothing})) == []
