"""What hurting a run did, as rows of one table: on the terminal, and in EXPERIMENTS.md between two marks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "EXPERIMENTS.md"
BEGIN, END = "<!-- written by make faults -->\n", "<!-- end of make faults -->\n"
HEAD = ("fault", "survived", "lost", "doubled", "steps done again", "seconds to the next step", "as a clean run")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One kind of fault, injected some times. Produced by the tests of this folder, consumed by `show` and `write`."""

    fault: str
    num_injected: int
    num_survived: int
    num_lost: int  # trajectories of the clean run that this one lacks
    num_doubled: int
    num_steps_again: int
    recovery_s: tuple[float, ...]  # until the step after the one that was hurt was done
    is_clean: bool  # ledger and weights are those of a run that was left alone, to the last bit

    @property
    def cells(self) -> tuple[str, ...]:
        recovery = f"{min(self.recovery_s):.0f} to {max(self.recovery_s):.0f}" if self.recovery_s else ""
        return (
            self.fault,
            f"{self.num_survived} of {self.num_injected}",
            str(self.num_lost),
            str(self.num_doubled),
            str(self.num_steps_again),
            recovery,
            "yes" if self.is_clean else "NO",
        )


def markdown(rows: Sequence[FaultRow]) -> str:
    """The table as it stands in EXPERIMENTS.md."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(row.cells for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write(rows: Sequence[FaultRow]) -> None:
    """Replace the table in EXPERIMENTS.md."""
    text = EXPERIMENTS.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    EXPERIMENTS.write_text(f"{before}{BEGIN}{markdown(rows)}{END}{after}", encoding="utf-8")
