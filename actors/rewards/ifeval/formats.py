"""Constraints on the format of a text: bullets, titles, JSON, sections, options, highlights."""

import json
import re
from typing import Annotated

from pydantic import Field

BULLET = re.compile(r"^[ \t]*[*+-][ \t]+\S", re.MULTILINE)
TITLE = re.compile(r"<<([^<>\n]*)>>")
HIGHLIGHT = re.compile(r"(\*{1,3})(?![\s*])[^*\n]*(?<![\s*])\1")
CODE_FENCE = "```"
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """Exactly so many lines that are markdown bullets."""
    return len(BULLET.findall(text)) == num_bullets


def title(text: str) -> bool:
    """A title stands in <<double angle brackets>>."""
    return any(title.strip() for title in TITLE.findall(text))


def json_format(text: str) -> bool:
    """The whole text is one JSON value, if need be in a code fence."""
    try:
        json.loads(_without_code_fence(text.strip()), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def multiple_sections(text: str, *, section_spliter: Annotated[str, Field(min_length=1)], num_sections: int) -> bool:
    """At least so many sections, each begun by the splitter and a number: "Section 1"."""
    return len(re.findall(rf"(?<!\w){re.escape(section_spliter.strip())}\s?[0-9]+", text)) >= num_sections


def constrained_response(text: str) -> bool:
    """One of the three answers occurs, word for word."""
    return any(option in text for option in OPTIONS)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """At least so many *highlighted* or **highlighted** parts within a line."""
    return len(HIGHLIGHT.findall(text)) >= num_highlights


def _without_code_fence(text: str) -> str:
    if not text.startswith(CODE_FENCE) or not text.endswith(CODE_FENCE):
        return text
    first_line, _, rest = text.partition("\n")
    return rest.removesuffix(CODE_FENCE) if first_line.casefold() in (CODE_FENCE, f"{CODE_FENCE}json") else text


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
