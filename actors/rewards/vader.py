"""Sentiment by lexicon: a second judge that costs nothing and was not learned.

Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

from cluster.types import Trajectory

if TYPE_CHECKING:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def score(trajectory: Trajectory) -> float:
    """VADER's compound sentiment of the completion, -1 (negative) .. 1 (positive); 0 without a word of the lexicon."""
    return float(_analyzer().polarity_scores(trajectory.completion.text)["compound"])


@lru_cache(maxsize=1)
def _analyzer() -> "SentimentIntensityAnalyzer":
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()  # reads its lexicon, about 0.1 s
