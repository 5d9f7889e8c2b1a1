"""Constraints on letter case and punctuation."""

import re

from actors.rewards.ifeval.language import language_of
from actors.rewards.ifeval.relation import Relation, is_in_relation

WORD = re.compile(r"\w+(?:[-'.]\w+)*")


def english_lowercase(text: str) -> bool:
    """English without a capital letter."""
    return text.islower() and language_of(text) == "en"


def english_capital(text: str) -> bool:
    """English without a small letter."""
    return text.isupper() and language_of(text) == "en"


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words without a small letter; "I" and "U.S" are such words."""
    capitals = [word for word in WORD.findall(text) if word.isupper()]
    return is_in_relation(len(capitals), capital_relation, capital_frequency)


def no_comma(text: str) -> bool:
    """No comma at all."""
    return "," not in text
