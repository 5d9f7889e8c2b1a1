"""`math-verify` at work, in the process of a `ChildProcess`."""

import logging
import re
import resource
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

MAX_MEMORY_BYTES = 4 * 2**30  # of address space; beyond it sympy gets a MemoryError
MATH_DELIMITER = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed")  # \$ is the sign of a currency

Request = tuple[str, str | None]  # reference, completion; None: is the reference readable at all?


def build() -> Callable[[Request], Iterator[bool]]:
    """The handler for this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    return _judge


def _judge(request: Request) -> Iterator[bool]:
    reference, completion = request
    if completion is None:
        yield bool(_parsed_reference(reference))
    else:
        answer = parse(completion, parsing_timeout=None)
        yield verify(_parsed_reference(reference), answer, timeout_seconds=None)


@lru_cache(maxsize=256)
def _parsed_reference(reference: str) -> list[Any]:
    """Without delimiters `parse` would look for the last number in the text, and find 2 in \\frac{1}{2}."""
    return parse(reference if MATH_DELIMITER.search(reference) else f"${reference}$", parsing_timeout=None)
