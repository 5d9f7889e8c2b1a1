"""What hurting a run did, as rows of one table: on the terminal, and in EXPERIMENTS.md between two marks."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "EXPERIMENTS.md"
BEGIN, END = "<!-- written by make faults -->\n", "<!-- end of make faults -->\n"
HEAD = ("row", "fault", "survived", "lost", "doubled", "steps again", "measured", "bar", "holds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a hurt run did otherwise than a clean one. Produced by `FaultyRun.losses`."""

    num_lost: int  # trajectories that the clean run trained on and this one did not
    num_doubled: int
    num_steps_again: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One kind of fault, injected some times. Produced by the tests of this folder, consumed by `write`."""

    row: str  # of the list of promises in tests/faults/README.md
    fault: str
    num_injected: int
    num_survived: int
    losses: Losses | None = None  # of runs that are laid beside a clean one
    measured: str
    bar: str
    holds: bool

    @property
    def cells(self) -> tuple[str, ...]:
        counts = ("", "", "") if self.losses is None else tuple(str(count) for count in astuple(self.losses))
        survived = f"{self.num_survived} of {self.num_injected}"
        return (self.row, self.fault, survived, *counts, self.measured, self.bar, "yes" if self.holds else "**NO**")


def seconds(values: Iterable[float]) -> str:
    """`12 to 17 s`."""
    rounded = sorted(round(value) for value in values)
    return f"{rounded[0]} s" if rounded[0] == rounded[-1] else f"{rounded[0]} to {rounded[-1]} s"


def likeness(is_clean: bool) -> str:
    """Whether ledger and weights are those of a clean run, in words."""
    return "bits of a clean run" if is_clean else "NOT as a clean run"


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """The table as it stands in EXPERIMENTS.md."""
    lines = [HEAD, tuple("---" for _ in HEAD), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(rows: Sequence[FaultRow]) -> str:
    """Put the rows into the table in EXPERIMENTS.md, in place of earlier ones of the same faults; returns the whole table."""
    text = EXPERIMENTS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    earlier, _, after = rest.partition(END)
    by_fault = {cells[:2]: cells for cells in map(_cells, earlier.splitlines()[2:])} | {row.cells[:2]: row.cells for row in rows}
    table = markdown(by_fault[fault] for fault in sorted(by_fault, key=_order))
    EXPERIMENTS.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")
    return table


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _order(fault: tuple[str, ...]) -> tuple[int, str, str]:
    row = fault[0]
    number = re.match(r"\d+", row)
    return (int(number.group()) if number else 1000, row, fault[1])
