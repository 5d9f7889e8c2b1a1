"""Constraints on how long a text is: in words, sentences, paragraphs."""

import re

from actors.rewards.ifeval.relation import Relation, is_in_relation

PARAGRAPH_DIVIDER = "***"
# An end mark, what closes with it, then a space or the end of the text; CJK marks and the danda need no space after them.
SENTENCE_END = re.compile(r"[.!?\u2026]+[\"')\]*_\u201d\u2019]*(?=\s|$)|[\u3002\uff01\uff1f\u0964]+|\n\s*\n")
# A full stop after these ends no sentence: titles, Latin abbreviations, initials, and the numbers of a list.
ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:(?i:mr|mrs|ms|dr|prof|jr|sr|vs|etc|cf|e\.g|i\.e|a\.m|p\.m)|[A-HJ-Z]|[A-Z](?:\.[A-Z])+)\.$"
    r"|(?:^|\n)\s*[0-9]+\.$"
)
MAX_ABBREVIATION = 12  # characters, with what stands before it
WORD = re.compile(r"\w+")


def number_words(text: str, *, num_words: int, relation: Relation) -> bool:
    """So many runs of letters, digits and underscores: "don't" is two."""
    return is_in_relation(len(WORD.findall(text)), relation, num_words)


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    """So many sentences; see `sentences`."""
    return is_in_relation(len(sentences(text)), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs between dividers ***; one that is empty breaks the constraint, except before and after all."""
    paragraphs = _without_empty_ends([paragraph.strip() for paragraph in text.split(PARAGRAPH_DIVIDER)])
    return len(paragraphs) == num_paragraphs and all(paragraphs)


def nth_paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs between empty lines, and the nth (from 1) begins with the word; case does not count."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise ValueError(f"nth_paragraph={nth_paragraph} is not one of {num_paragraphs} paragraphs")
    paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]
    if len(paragraphs) != num_paragraphs:
        return False
    first = WORD.search(paragraphs[nth_paragraph - 1])
    return first is not None and first.group().casefold() == first_word.strip().casefold()


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end at an end mark that no abbreviation explains, and at an empty line."""
    found, start = [], 0
    for mark in SENTENCE_END.finditer(text):
        if ABBREVIATION.search(text, max(start, mark.end() - MAX_ABBREVIATION), mark.end()) is None:
            found.append(text[start : mark.end()])
            start = mark.end()
    found.append(text[start:])
    return [sentence for sentence in found if WORD.search(sentence)]


def _without_empty_ends(paragraphs: list[str]) -> list[str]:
    first = 1 if paragraphs and not paragraphs[0] else 0
    last = len(paragraphs) - 1 if len(paragraphs) > first and not paragraphs[-1] else len(paragraphs)
    return paragraphs[first:last]
