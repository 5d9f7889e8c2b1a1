"""Constraints on what a text contains: postscripts and placeholders."""

import re
from typing import Annotated

from pydantic import Field

PLACEHOLDER = re.compile(r"\[([^\[\]\n]*)\]")


def postscript(text: str, *, postscript_marker: Annotated[str, Field(min_length=2)]) -> bool:
    """A postscript begins with the marker; spaces after its full stops and its last full stop are free."""
    letters = [re.escape(letter) for letter in postscript_marker.split(".") if letter]
    pattern = r"(?<![\w.])" + r"\.\s?".join(letters) + r"(?!\w)"
    return re.search(pattern, text, re.IGNORECASE) is not None


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many [placeholders] in square brackets, none of them empty."""
    return sum(bool(placeholder.strip()) for placeholder in PLACEHOLDER.findall(text)) >= num_placeholders
