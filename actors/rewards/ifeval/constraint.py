"""One constraint of a task: which checker, with which arguments, and how it travels in `Task.reference`."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from actors.rewards.ifeval import arrangement, characters, content, formats, keywords, language, lengths
from cluster.errors import DataError

Checker = Callable[..., bool]  # (text, *, arguments of the constraint) -> is it kept?

_CHECKERS: dict[str, Checker] = {
    "change_case:capital_word_frequency": characters.capital_word_frequency,
    "change_case:english_capital": characters.english_capital,
    "change_case:english_lowercase": characters.english_lowercase,
    "combination:repeat_prompt": arrangement.repeat_prompt,
    "combination:two_responses": arrangement.two_responses,
    "detectable_content:number_placeholders": content.number_placeholders,
    "detectable_content:postscript": content.postscript,
    "detectable_format:constrained_response": formats.constrained_response,
    "detectable_format:json_format": formats.json_format,
    "detectable_format:multiple_sections": formats.multiple_sections,
    "detectable_format:number_bullet_lists": formats.number_bullet_lists,
    "detectable_format:number_highlighted_sections": formats.number_highlighted_sections,
    "detectable_format:title": formats.title,
    "keywords:existence": keywords.existence,
    "keywords:forbidden_words": keywords.forbidden_words,
    "keywords:frequency": keywords.frequency,
    "keywords:letter_frequency": keywords.letter_frequency,
    "language:response_language": language.response_language,
    "length_constraints:nth_paragraph_first_word": lengths.nth_paragraph_first_word,
    "length_constraints:number_paragraphs": lengths.number_paragraphs,
    "length_constraints:number_sentences": lengths.number_sentences,
    "length_constraints:number_words": lengths.number_words,
    "punctuation:no_comma": characters.no_comma,
    "startend:end_checker": arrangement.end_checker,
    "startend:quotation": arrangement.quotation,
}
CHECKERS: Mapping[str, Checker] = {
    # Arguments come from a file: a text where a number is due must be an error, not a comparison that happens to work.
    instruction_id: validate_call(config=ConfigDict(strict=True))(checker)
    for instruction_id, checker in _CHECKERS.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Produced by the IFEval task set, consumed by the `ifeval` rewards."""

    instruction_id: str  # a key of CHECKERS, once the task set has been built
    arguments: Mapping[str, Any]  # as IFEval's data names them

    def problem(self) -> str | None:
        """Why its checker cannot work with its arguments; None where it can."""
        try:
            CHECKERS[self.instruction_id]("", **self.arguments)
        except ValidationError as error:
            detail = error.errors()[0]
            return f"{self.instruction_id}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}"
        except ValueError as error:
            return f"{self.instruction_id}: {error}"
        return None

    def is_kept_by(self, text: str) -> bool:
        """Whether the text keeps it. An empty text keeps none: saying nothing is no way to avoid a comma."""
        return bool(text.strip()) and CHECKERS[self.instruction_id](text, **self.arguments)


def reference_of(constraints: Iterable[Constraint]) -> str:
    """Constraints as canonical JSON: [["punctuation:no_comma", {}], ...]."""
    return json.dumps(
        [[constraint.instruction_id, dict(constraint.arguments)] for constraint in constraints],
        sort_keys=True,
        separators=(",", ":"),
    )


@lru_cache(maxsize=4096)
def constraints_in(reference: str) -> tuple[Constraint, ...]:
    """The inverse of `reference_of`."""
    try:
        constraints = tuple(Constraint(instruction_id=name, arguments=arguments) for name, arguments in json.loads(reference))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"reference {reference!r:.100} holds no constraints; the ifeval rewards are for task.kind=ifeval"
        ) from error
    return constraints
