"""How IFEval's constraints compare a count with a limit."""

from typing import Literal

Relation = Literal["at least", "less than"]


def is_in_relation(count: int, relation: Relation, limit: int) -> bool:
    """Whether `count` is at least, or less than, `limit`."""
    return count >= limit if relation == "at least" else count < limit
