"""The judgements: split, pairs, human agreement, and the tasks made from them."""

import pytest

from actors.config import MovieReviewTaskConfig
from actors.sources.movie_reviews import (
    RatedSnippet,
    fetch_data_set,
    human_agreement,
    load_movie_reviews,
    preference_pairs,
    split_movie_reviews,
)
from actors.tasks.movie_reviews import tasks_from_snippets
from cluster.errors import DataError


def snippet(snippet_id: str, *ratings: int, text: str = "") -> RatedSnippet:
    return RatedSnippet(
        snippet_id=snippet_id, text=text or f"snippet {snippet_id}", mean_rating=sum(ratings) / len(ratings), ratings=ratings
    )


MANY = [snippet(str(index), index % 9 - 4) for index in range(2000)]


def test_split_is_a_partition_with_about_an_eighth_held_out() -> None:
    split = split_movie_reviews(MANY)
    assert sorted([*split.train, *split.held_out], key=lambda s: int(s.snippet_id)) == MANY
    assert 0.10 < len(split.held_out) / len(MANY) < 0.14


def test_split_does_not_depend_on_the_company_or_order() -> None:
    held_out = set(split_movie_reviews(MANY).held_out)
    assert set(split_movie_reviews(MANY[::-2]).held_out) == held_out & set(MANY[::-2])


def test_a_text_that_occurs_twice_lies_on_one_side() -> None:
    twins = [snippet(f"a{index}", 1, text=f"A  Text {index}") for index in range(300)]
    twins += [snippet(f"b{index}", 1, text=f"a text {index}") for index in range(300)]
    split = split_movie_reviews(twins)
    assert {s.snippet_id[1:] for s in split.train}.isdisjoint({s.snippet_id[1:] for s in split.held_out})


def test_pairs_obey_the_gap_and_their_order() -> None:
    pairs = preference_pairs(MANY, min_gap=2.0, num_pairs=500, seed=1)
    assert len(pairs) == 500
    assert all(MANY[better].mean_rating - MANY[worse].mean_rating >= 2.0 for better, worse in pairs)
    assert pairs == preference_pairs(MANY, min_gap=2.0, num_pairs=500, seed=1)
    assert pairs != preference_pairs(MANY, min_gap=2.0, num_pairs=500, seed=2)


def test_a_gap_nobody_reaches_is_an_error() -> None:
    with pytest.raises(DataError, match="only 0 of 5 pairs have mean ratings at least 9.0 apart"):
        preference_pairs(MANY[:20], min_gap=9.0, num_pairs=5, seed=0)


def test_pairs_need_two_snippets_and_a_positive_gap() -> None:
    with pytest.raises(DataError, match="at least 2 snippets, got 1"):
        preference_pairs(MANY[:1], min_gap=0.5, num_pairs=1, seed=0)
    with pytest.raises(DataError, match="min_gap=0"):
        preference_pairs(MANY, min_gap=0, num_pairs=1, seed=0)


def test_human_agreement_by_hand() -> None:
    # Raters 1 to 4 of the pair: right, right, equal, wrong -> (1 + 1 + 0.5 + 0) / 4.
    pair = [snippet("good", 3, 2, 1, -1), snippet("bad", -3, -2, 1, 0)]
    assert human_agreement(pair, min_gap=0.5, num_pairs=20_000, seed=0) == pytest.approx(0.625, abs=0.015)


def test_raters_who_agree_or_cannot_tell() -> None:
    clear = [snippet("good", 3, 4), snippet("bad", -3, -4, -4)]
    assert human_agreement(clear, min_gap=0.5, num_pairs=50, seed=0) == 1.0
    tied = [snippet("good", 1, 1, 4), snippet("bad", 1, 1)]  # the third rater saw only one of them
    assert human_agreement(tied, min_gap=0.5, num_pairs=50, seed=0) == 0.5


def test_tasks_are_the_first_words_of_long_enough_snippets() -> None:
    texts = [f"{index} two  three four five six" for index in range(100)] + ["one two three four five"]
    snippets = [snippet(str(index), 1, text=text) for index, text in enumerate(texts)]
    train, held_out = tasks_from_snippets(snippets, MovieReviewTaskConfig(num_prompt_words=3))
    content = {task.task_id: task.messages[0].content for task in [*train, *held_out]}
    assert content == {f"movie_reviews/{index}": f"{index} two three" for index in range(100)}  # 5 words are fewer than 2 * 3


def test_no_prompt_is_trained_on_and_held_out() -> None:
    texts = [f"{'same start' if index % 2 else f'start {index}'} then {index} differs" for index in range(400)]
    snippets = [snippet(str(index), 1, text=text) for index, text in enumerate(texts)]
    train, held_out = tasks_from_snippets(snippets, MovieReviewTaskConfig(num_prompt_words=2, prompt_format="chat"))
    assert {task.messages for task in train}.isdisjoint({task.messages for task in held_out})
    assert "Continue this movie review: same start" in {task.messages[0].content for task in train}
    assert train.name == "movie_reviews/train"
    assert held_out.name == "movie_reviews/held_out"


def test_unknown_data_set_lists_the_known_one() -> None:
    with pytest.raises(DataError, match="'films' is not known; known: movie-reviews"):
        fetch_data_set("films")


def test_the_real_judgements() -> None:
    snippets = load_movie_reviews()
    assert len(snippets) == 10_605
    assert snippets[2].text == "Effective but too tepid biopic"
    assert snippets[2].mean_rating == -0.6
    assert snippets[92].text.endswith("opened up by the photography.")
    assert "clich\u00e9s" in snippets[92].text
    assert min(len(s.ratings) for s in snippets) == 15
    assert human_agreement(snippets, min_gap=0.5, num_pairs=5000, seed=0) == pytest.approx(0.90, abs=0.02)
