"""What panels of the figure are drawn with: colours, lines, legends."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one figure; series colours tell apart also without full colour vision (after Okabe and Ito)."""

    background: str
    ink: str
    faint: str
    grid: str
    before: str
    after: str
    accent: str
    stages: tuple[str, ...]  # one for each of STAGE_SERIES


LIGHT = Theme(
    background="#ffffff",
    ink="#1f2933",
    faint="#667380",
    grid="#e3e7eb",
    before="#8a97a5",
    after="#0b6fb8",
    accent="#d0680b",
    stages=("#0b6fb8", "#b9c3cd", "#d0680b", "#009e73"),
)
DARK = Theme(
    background="#171b20",
    ink="#e6eaee",
    faint="#9aa7b3",
    grid="#2c333a",
    before="#8a97a5",
    after="#58b4f0",
    accent="#f0a04b",
    stages=("#3b8fd0", "#5d6873", "#e08a35", "#2bbd92"),
)


def curve(axes: "Axes", steps: list[int], values: list[float], colour: str, label: str) -> None:
    """A line over whole steps, with dots while there are few: a single step is no line."""
    from matplotlib.ticker import MaxNLocator

    axes.plot(steps, values, color=colour, label=label, marker="o", ms=3.2 if len(steps) <= 60 else 0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_above(axes: "Axes") -> None:
    """Make room over what is drawn, and put the legend there."""
    legend = axes.legend(loc="upper left")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.13 * (high - low) * len(legend.get_texts()))
