"""The language of a text, by `langdetect`, which IFEval uses as well. Short texts are often mistaken for a neighbour language."""

from functools import lru_cache
from pathlib import Path


def response_language(text: str, *, language: str) -> bool:
    """The text is in the language, an ISO 639-1 code (zh-cn and zh-tw for Chinese)."""
    if language not in _known_languages():
        raise ValueError(f"language {language!r} is not one of {', '.join(sorted(_known_languages()))}")
    return language_of(text) == language


def language_of(text: str) -> str:
    """Its most likely language, empty where nothing in it is of one. Case is folded: capitals are not told apart."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it samples; the same text shall always get the same answer
    try:
        return detect(text.casefold())
    except LangDetectException:
        return ""


@lru_cache(maxsize=1)
def _known_languages() -> frozenset[str]:
    from langdetect import PROFILES_DIRECTORY

    return frozenset(profile.name for profile in Path(PROFILES_DIRECTORY).iterdir())
