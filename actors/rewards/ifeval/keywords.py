"""Constraints on words and letters. Upper and lower case agree throughout."""

import re
from typing import Annotated

from pydantic import Field

from actors.rewards.ifeval.relation import Relation, is_in_relation

Word = Annotated[str, Field(min_length=1)]
Words = Annotated[list[Word], Field(min_length=1)]
Letter = Annotated[str, Field(min_length=1, max_length=1)]


def existence(text: str, *, keywords: Words) -> bool:
    """Every keyword occurs, if only as a part of a longer word."""
    return all(keyword.casefold() in text.casefold() for keyword in keywords)


def frequency(text: str, *, keyword: Word, frequency: int, relation: Relation) -> bool:
    """The keyword occurs so many times; parts of longer words count."""
    return is_in_relation(text.casefold().count(keyword.casefold()), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Words) -> bool:
    """None of the words occurs as a word of its own."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, *, letter: Letter, let_frequency: int, let_relation: Relation) -> bool:
    """The letter, or other character, occurs so many times."""
    return is_in_relation(text.casefold().count(letter.casefold()), let_relation, let_frequency)
