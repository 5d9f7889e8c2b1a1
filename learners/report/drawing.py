"""What panels of the figure are drawn with: colours, lines, legends."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 150
PANEL_INCHES = (4.6, 3.3)
MARGIN_INCHES = {"left": 0.80, "right": 0.20, "bottom": 0.58, "top": 0.36}  # of a panel, for its labels and title


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


def margins(num_rows: int, num_columns: int) -> dict[str, float]:
    """The same for every panel, as shares of the figure: to fit margins to their labels takes matplotlib as long as to draw."""
    width, height = PANEL_INCHES
    left, right, bottom, top = (MARGIN_INCHES[side] for side in ("left", "right", "bottom", "top"))
    return {
        "left": left / (width * num_columns),
        "right": 1 - right / (width * num_columns),
        "bottom": bottom / (height * num_rows),
        "top": 1 - top / (height * num_rows),
        "wspace": (left + right) / (width - left - right),  # in widths of the drawn part of a panel
        "hspace": (bottom + top) / (height - bottom - top),
    }


def style(theme: Theme) -> dict[Any, Any]:
    return {
        "font.size": 9.5,
        "font.family": "DejaVu Sans",
        "text.color": theme.ink,
        "axes.labelcolor": theme.faint,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.background,
        "figure.facecolor": theme.background,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 2.0,
    }


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
