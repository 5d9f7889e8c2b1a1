"""IFEval's constraints, on texts small enough to judge by eye: (arguments, text, is it kept?)."""

from typing import Any

import pytest

from actors.rewards.ifeval.constraint import CHECKERS, Constraint
from actors.rewards.ifeval.lengths import sentences

ENGLISH = "this is a short text about a walk through the quiet streets of an old town in the evening"
GERMAN = "Das ist ein kurzer Text ueber einen Spaziergang durch die ruhigen Strassen einer alten Stadt am Abend"

CASES: dict[str, list[tuple[dict[str, Any], str, bool]]] = {
    "change_case:capital_word_frequency": [
        ({"capital_frequency": 2, "capital_relation": "at least"}, "I saw NASA.", True),
        ({"capital_frequency": 3, "capital_relation": "at least"}, "I saw NASA in Rome.", False),
        ({"capital_frequency": 2, "capital_relation": "less than"}, "I saw Rome.", True),
        ({"capital_frequency": 1, "capital_relation": "less than"}, "ALL-CAPS 42", False),
    ],
    "change_case:english_capital": [
        ({}, ENGLISH.upper(), True),
        ({}, ENGLISH, False),
        ({}, GERMAN.upper(), False),
        ({}, "42", False),
    ],
    "change_case:english_lowercase": [
        ({}, ENGLISH, True),
        ({}, ENGLISH.capitalize(), False),
        ({}, GERMAN.lower(), False),
        ({}, "42", False),
    ],
    "combination:repeat_prompt": [
        ({"prompt_to_repeat": "Name a fruit. "}, "name a fruit.\nApple.", True),
        ({"prompt_to_repeat": "Name a fruit."}, "Sure: Name a fruit. Apple.", False),
    ],
    "combination:two_responses": [
        ({}, "Apple.\n******\nPear.", True),
        ({}, "******\nApple.\n******\nPear.\n******", True),
        ({}, "Apple.\n******\nApple.", False),
        ({}, "Apple.", False),
        ({}, "Apple.******Pear.******Plum.", False),
        ({}, "Apple.******", False),
    ],
    "detectable_content:number_placeholders": [
        ({"num_placeholders": 2}, "Dear [name], of [your address]", True),
        ({"num_placeholders": 3}, "Dear [name], of [your address] []", False),
        ({"num_placeholders": 1}, "a[\n]b", False),
    ],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, "Bye.\nP.S. Call me", True),
        ({"postscript_marker": "P.S."}, "Bye.\np. s. call me", True),
        ({"postscript_marker": "P.S."}, "Bye.\nP.P.S. Call me", False),
        ({"postscript_marker": "P.P.S"}, "Bye.\nP.P.S call me", True),
        ({"postscript_marker": "P.P.S"}, "Bye.\nP.S. Call me", False),
        ({"postscript_marker": "P.S."}, "The p.square", False),
    ],
    "detectable_format:constrained_response": [
        ({}, "My answer is maybe.", True),
        ({}, "Well. My answer is no. Sorry.", True),
        ({}, "My answer is: yes", False),
    ],
    "detectable_format:json_format": [
        ({}, '{"a": [1, 2]}', True),
        ({}, '```json\n{"a": 1}\n```', True),
        ({}, '```\n{"a": 1}\n```\n', True),
        ({}, '```python\n{"a": 1}\n```', False),
        ({}, 'Here it is: {"a": 1}', False),
        ({}, "{'a': 1}", False),
        ({}, '{"a": NaN}', False),
        ({}, "[" * 100_000, False),
        ({}, "```", False),
    ],
    "detectable_format:multiple_sections": [
        ({"section_spliter": "Section", "num_sections": 2}, "Section 1\nA\nSection 2\nB", True),
        ({"section_spliter": "Section", "num_sections": 3}, "Section 1\nA\nSection 2\nB", False),
        ({"section_spliter": "SECTION", "num_sections": 1}, "Section 1", False),
        ({"section_spliter": "Day", "num_sections": 1}, "Sunday 1", False),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 3}, "* a\n- b\n  * c", True),
        ({"num_bullets": 2}, "* a\n- b\n  * c", False),
        ({"num_bullets": 1}, "**bold**\n---\n* a", True),
        ({"num_bullets": 0}, "*a* b", True),
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 3}, "*a* and **b c** and ***d***", True),
        ({"num_highlights": 4}, "*a* and **b c** and ***d***", False),
        ({"num_highlights": 1}, "* a\n* b", False),
        ({"num_highlights": 1}, "2 * 3 * 4 ** **", False),
        ({"num_highlights": 1}, "*a\nb*", False),
    ],
    "detectable_format:title": [
        ({}, "<<A walk>>\nIt was late.", True),
        ({}, "<< >>", False),
        ({}, "<A walk>", False),
        ({}, "<<A\nwalk>>", False),
    ],
    "keywords:existence": [
        ({"keywords": ["rain", "Sun"]}, "Rainy days and sunny days", True),
        ({"keywords": ["rain", "snow"]}, "Rainy days", False),
        ({"keywords": ["a.c"]}, "abc", False),
    ],
    "keywords:forbidden_words": [
        ({"forbidden_words": ["rain"]}, "Rainy days", True),
        ({"forbidden_words": ["rain", "snow"]}, "No SNOW!", False),
        ({"forbidden_words": ["c++"]}, "I like c++.", False),
    ],
    "keywords:frequency": [
        ({"keyword": "rain", "frequency": 2, "relation": "at least"}, "Rain, rainy", True),
        ({"keyword": "rain", "frequency": 3, "relation": "at least"}, "Rain, rainy", False),
        ({"keyword": "rain", "frequency": 2, "relation": "less than"}, "Rain", True),
        ({"keyword": "rain", "frequency": 1, "relation": "less than"}, "Rain", False),
    ],
    "keywords:letter_frequency": [
        ({"letter": "n", "let_frequency": 2, "let_relation": "at least"}, "No rain", True),
        ({"letter": "n", "let_frequency": 2, "let_relation": "less than"}, "No rain", False),
        ({"letter": "!", "let_frequency": 1, "let_relation": "at least"}, "No!", True),
    ],
    "language:response_language": [
        ({"language": "de"}, GERMAN, True),
        ({"language": "en"}, GERMAN, False),
        ({"language": "hi"}, "\u092f\u0939 \u090f\u0915 \u091b\u094b\u091f\u093e \u092a\u093e\u0920 \u0939\u0948", True),
        ({"language": "en"}, "42", False),
    ],
    "length_constraints:nth_paragraph_first_word": [
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"}, "An oak.\n\nElm, ash.", True),
        ({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"}, 'An oak.\n \n\n"Elm" and ash.', True),
        ({"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "elm"}, "An oak.\n\nElm, ash.", False),
        ({"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "elm"}, "An oak.\n\nElm, ash.", False),
        ({"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "elm"}, "Elms", False),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, "One.\n***\nTwo.", True),
        ({"num_paragraphs": 2}, "***\nOne.\n***\nTwo.\n***", True),
        ({"num_paragraphs": 2}, "One.\n\nTwo.", False),
        ({"num_paragraphs": 2}, "One.\n***\n***\nTwo.", False),
        ({"num_paragraphs": 1}, "One.", True),
        ({"num_paragraphs": 1}, "***", False),
    ],
    "length_constraints:number_sentences": [
        ({"num_sentences": 2, "relation": "at least"}, "One. Two!", True),
        ({"num_sentences": 3, "relation": "at least"}, "One. Two!", False),
        ({"num_sentences": 2, "relation": "less than"}, "Dr. Who came", True),
    ],
    "length_constraints:number_words": [
        ({"num_words": 3, "relation": "at least"}, "one, two -- three", True),
        ({"num_words": 3, "relation": "less than"}, "one, two -- three", False),
    ],
    "punctuation:no_comma": [({}, "One. Two; three", True), ({}, "One, two", False)],
    "startend:end_checker": [
        ({"end_phrase": "Any questions?"}, "That is all. any questions? \n", True),
        ({"end_phrase": "Any questions?"}, '"That is all. Any questions?"', True),
        ({"end_phrase": '"So be it."'}, 'He said "so be it."', True),
        ({"end_phrase": "Any questions?"}, "Any questions? Bye.", False),
    ],
    "startend:quotation": [({}, ' "All of it."\n', True), ({}, '"All" of it.', False), ({}, '"', False)],
}


def test_every_checker_has_cases_both_ways() -> None:
    assert set(CASES) == set(CHECKERS)
    assert all({kept for _, _, kept in cases} == {True, False} for cases in CASES.values())


@pytest.mark.parametrize(
    ("instruction_id", "arguments", "text", "kept"), [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_checkers(instruction_id: str, arguments: dict[str, Any], text: str, kept: bool) -> None:
    constraint = Constraint(instruction_id=instruction_id, arguments=arguments)
    assert constraint.problem() is None
    assert constraint.is_kept_by(text) is kept


@pytest.mark.parametrize(("instruction_id", "arguments"), [(name, cases[0][0]) for name, cases in CASES.items()])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_keeps_nothing(instruction_id: str, arguments: dict[str, Any], text: str) -> None:
    assert Constraint(instruction_id=instruction_id, arguments=arguments).is_kept_by(text) is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("One", ["One"]),
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("It cost 3.50 in total... Really?!", ["It cost 3.50 in total...", "Really?!"]),
        ("Mr. J. Smith met Dr. Who, i.e. the U.S. envoy. Good.", ["Mr. J. Smith met Dr. Who, i.e. the U.S. envoy.", "Good."]),
        ('He said "stop." She did.', ['He said "stop."', "She did."]),
        ("So did I. And you.", ["So did I.", "And you."]),
        ("The answer is no. Next.", ["The answer is no.", "Next."]),
        ("1. Apples are red.\n2. Pears are not.", ["1. Apples are red.", "2. Pears are not."]),
        ("A title\n\nA line without end\nand its end.", ["A title", "A line without end\nand its end."]),
        ("\u4f60\u597d\u3002\u518d\u89c1\u3002", ["\u4f60\u597d\u3002", "\u518d\u89c1\u3002"]),
        ("... --- !!!", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [sentence.strip() for sentence in sentences(text)] == expected


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("unit", ["\n", " ", "*", "[", "<", ".", "a", "Dr. ", "* ", "```", '"', "******"])
def test_long_monotonous_texts_are_judged(name: str, unit: str) -> None:
    """A policy that repeats itself must not stop a scorer; the test's own time limit is the judge."""
    Constraint(instruction_id=name, arguments=CASES[name][0][0]).is_kept_by(unit * 5000)


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("keywords:existence", {}, "keywords: Missing required keyword only argument"),
        ("keywords:existence", {"keywords": "rain"}, "keywords: Input should be a valid list"),
        ("keywords:existence", {"keywords": []}, "keywords: List should have at least 1 item"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "letter: String should"),
        ("length_constraints:number_words", {"num_words": "3", "relation": "at least"}, "num_words: Input should be a valid int"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "around"}, "relation: Input should be 'at least' or"),
        ("punctuation:no_comma", {"num": 1}, "num: Unexpected keyword argument"),
        ("language:response_language", {"language": "tlh"}, "language 'tlh' is not one of af, ar"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph=3 is not one of 2 paragraphs",
        ),
    ],
)
def test_arguments_are_checked(name: str, arguments: dict[str, Any], problem: str) -> None:
    found = Constraint(instruction_id=name, arguments=arguments).problem()
    assert found is not None
    assert found.startswith(f"{name}: ")
    assert problem in found
