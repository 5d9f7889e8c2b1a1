"""What ran on a GPU, as one table in Markdown, for EXPERIMENTS.md."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check. Produced by the conftest, consumed by `table`."""

    check: str  # a test's id, without its folder
    outcome: str
    measured: Mapping[str, object] = field(default_factory=dict)


def table(rows: Iterable[Row], *, machine: Sequence[str]) -> list[str]:
    """Lines: the card and versions first, so that a row is never kept without them."""
    lines = ["; ".join(machine), "", "| check | outcome | measured |", "|---|---|---|"]
    for row in rows:
        measured = ", ".join(f"{name} {value}" for name, value in row.measured.items())
        lines.append(f"| {_as_words(row.check)} | {row.outcome} | {measured} |")
    return lines


def _as_words(check: str) -> str:
    _, _, name = check.rpartition("::")
    name, bracket, case = name.removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" ({case.removesuffix(']')})" if bracket else "")
