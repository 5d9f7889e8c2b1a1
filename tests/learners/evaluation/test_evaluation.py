"""Evaluation numbers, computed by hand."""

from dataclasses import replace

import pytest

from cluster.errors import DataError
from learners.evaluation.results import EvaluatedCompletion, compare, distinct_bigrams, evaluate_samples, verdicts


def sample(score: float, *, prompt: str = "p", completion: str = "a b c", vader: float = 0.0) -> EvaluatedCompletion:
    return EvaluatedCompletion(prompt=prompt, completion=completion, score=score, vader_compound=vader, num_tokens=4, kl_nats=0.0)


def test_averages_by_hand() -> None:
    result = evaluate_samples(
        [
            EvaluatedCompletion(prompt="p", completion="a b a b", score=1.0, vader_compound=0.05, num_tokens=4, kl_nats=-1.0),
            EvaluatedCompletion(prompt="p", completion="A B", score=3.0, vader_compound=0.06, num_tokens=8, kl_nats=4.0),
        ]
    )
    assert (result.score_mean, result.score_std) == (2.0, 1.0)
    assert result.positive_frac == 0.5  # 0.05 itself is not positive
    assert result.vader_compound_mean == pytest.approx(0.055)
    assert (result.kl_nats_per_completion, result.completion_tokens_mean) == (1.5, 6.0)
    assert result.distinct_2 == 0.5  # ab ba ab | ab: two of four
    assert (result.num_prompts, result.num_completions) == (1, 2)


def test_bigrams_do_not_cross_completions_and_short_texts_have_none() -> None:
    assert distinct_bigrams(["a", "b", ""]) == 0.0
    assert distinct_bigrams(["a b", "b a"]) == 1.0


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(DataError, match="num_prompts"):
        evaluate_samples([])


def test_compare_measures_the_gain_in_starting_standard_deviations() -> None:
    before = evaluate_samples([sample(-2.0), sample(2.0)])  # mean 0, std 2
    after = evaluate_samples([sample(2.0, vader=0.5), sample(4.0)])  # mean 3, std 1
    change = compare(before, after)
    assert change["score_gain"] == 3.0
    assert change["score_gain_in_starting_std"] == 1.5
    assert change["score_gain_standard_error"] == pytest.approx(5**0.5)  # sqrt(2^2 / 1 + 1^2 / 1)
    assert (change["positive_frac_gain"], change["vader_compound_gain"]) == (0.5, 0.25)
    assert (change["completion_tokens_gain"], change["distinct_2_gain"]) == (0.0, 0.0)


def test_a_policy_compared_with_itself_gains_nothing_even_without_spread() -> None:
    same = evaluate_samples([sample(1.0), sample(1.0)])
    assert set(compare(same, same).values()) == {0.0}


def test_verdicts_pass_an_honest_gain_and_catch_each_way_to_cheat() -> None:
    before = replace(evaluate_samples([sample(-1.0), sample(1.0)] * 32), distinct_2=0.8)
    honest = replace(before, score_mean=1.0, vader_compound_mean=0.4, kl_nats_per_completion=5.0)
    assert [verdict.passed for verdict in verdicts(before, honest)] == [True] * 6
    cheats = [
        replace(honest, score_mean=0.4),
        replace(honest, vader_compound_mean=-0.1),
        replace(honest, kl_nats_per_completion=21.0),
        replace(honest, distinct_2=0.5),
        replace(honest, completion_tokens_mean=1.0),
    ]
    failed = [[index for index, verdict in enumerate(verdicts(before, cheat)) if not verdict.passed] for cheat in cheats]
    assert failed == [[0], [2], [3], [4], [5]]
    unsure = evaluate_samples([sample(-1.0), sample(1.0)])
    assert not verdicts(unsure, replace(unsure, score_mean=1.0))[1].passed  # two completions prove nothing
