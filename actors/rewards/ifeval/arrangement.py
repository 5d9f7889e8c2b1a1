"""Constraints on how a text begins, ends and is put together."""

from typing import Annotated

from pydantic import Field

RESPONSE_DIVIDER = "******"

Phrase = Annotated[str, Field(min_length=1)]


def repeat_prompt(text: str, *, prompt_to_repeat: Phrase) -> bool:
    """The text begins with the prompt; case does not count."""
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


def two_responses(text: str) -> bool:
    """Two different responses with one divider ****** between them; dividers before and after are free."""
    text = text.strip().removeprefix(RESPONSE_DIVIDER).removesuffix(RESPONSE_DIVIDER)
    responses = [response.strip() for response in text.split(RESPONSE_DIVIDER)]
    return len(responses) == 2 and all(responses) and responses[0] != responses[1]


def end_checker(text: str, *, end_phrase: Phrase) -> bool:
    """The text ends with the phrase; case and quotation marks after it do not count."""
    return text.strip().rstrip('"').rstrip().casefold().endswith(end_phrase.strip().rstrip('"').casefold())


def quotation(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text.startswith('"') and text.endswith('"')
