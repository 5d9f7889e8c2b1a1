"""The picture of a sweep: how its trials learned, and what each setting made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from learners.report.drawing import DOTS_PER_INCH, LIGHT, PANEL_INCHES, Theme, margins, style
from learners.sweep.loading import CheckedSweep
from learners.sweep.metric import metric_points
from learners.sweep.record import DONE, SweepRecord, Trial, best_of
from learners.sweep.space import Range

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 3
MAX_SETTINGS = 6  # with a panel of their own
LOG_SPAN = 20.0  # numbers of a list whose largest is so many times the least are drawn on a logarithmic scale
MAX_TICKS = 5  # along an axis of numbers
MAX_TICK_LETTERS = 14
DOT_POINTS = 36.0  # area


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where the values of one setting stand on an axis. Produced by `place`, consumed by panels."""

    positions: tuple[float, ...]  # one a trial
    is_log: bool
    labels: tuple[str, ...]  # at 0, 1, 2, ...; empty where the positions are the numbers themselves


def draw_sweep(record: SweepRecord, checked: CheckedSweep) -> bytes:
    """As PNG: the curves of all trials, the value over each setting, and over the first two of them together."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(checked.space.settings)[:MAX_SETTINGS]
    num_panels = 1 + len(names) + (len(names) > 1)
    num_columns = 2 if num_panels == 4 else min(num_panels, MAX_COLUMNS)
    num_rows = math.ceil(num_panels / num_columns)
    with rc_context(style(LIGHT)):
        figure = Figure(figsize=(PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows), dpi=DOTS_PER_INCH)
        figure.subplots_adjust(**margins(num_rows, num_columns))
        axes = [figure.add_subplot(num_rows, num_columns, number) for number in range(1, num_panels + 1)]
        _draw_curves(axes[0], record, checked, LIGHT)
        for panel, name in zip(axes[1:], names, strict=False):
            _draw_setting(panel, record, checked, name, LIGHT)
        if len(names) > 1:
            _draw_pair(axes[-1], record, checked, LIGHT)
        buffer = BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "rayward"})
    return buffer.getvalue()


def place(texts: Sequence[str], setting: object) -> Placed:
    """Numbers by their size, anything else in the order in which it comes."""
    numbers = [_number(text) for text in texts]
    known = [number for number in numbers if number is not None]
    if len(known) == len(texts) and texts:
        spans = min(known) > 0 and max(known) / min(known) >= LOG_SPAN
        is_log = setting.is_log if isinstance(setting, Range) else spans
        return Placed(positions=tuple(known), is_log=is_log, labels=())
    labels = tuple(dict.fromkeys(texts))
    return Placed(positions=tuple(float(labels.index(text)) for text in texts), is_log=False, labels=labels)


def _draw_curves(axes: "Axes", record: SweepRecord, checked: CheckedSweep, theme: Theme) -> None:
    growing = record.metric if checked.config.scheduler == "asha" else checked.compared.on_the_way
    best = best_of(record)
    axes.set_title("Trials while they learn")
    for trial in record.trials:
        points = metric_points(record.directory / trial.name, growing)
        if not points:
            continue
        is_best = best is not None and trial.name == best.name
        axes.plot(
            *zip(*points, strict=True),
            color=theme.accent if is_best else theme.after if trial.state == "completed" else theme.before,
            lw=2.0 if is_best else 1.1,
            alpha=1.0 if is_best else 0.55,
            zorder=3 if is_best else 2,
            label=f"{trial.name}, the best" if is_best else None,
        )
    axes.set(xlabel="step", ylabel=growing)
    if best is not None:
        axes.legend(loc="best")


def _draw_setting(axes: "Axes", record: SweepRecord, checked: CheckedSweep, name: str, theme: Theme) -> None:
    trials = _valued(record)
    axes.set_title(name)
    placed = place([trial.settings[name] for trial in trials], checked.space.settings[name])
    best = best_of(record)
    for trial, position in zip(trials, placed.positions, strict=True):
        is_best = best is not None and trial.name == best.name
        colour = theme.accent if is_best else theme.after if trial.state == "completed" else theme.before
        axes.scatter([position], [trial.value], s=DOT_POINTS, color=colour, lw=0, zorder=3 if is_best else 2)
    _scale(axes, "x", placed)
    axes.set(ylabel=record.metric)


def _draw_pair(axes: "Axes", record: SweepRecord, checked: CheckedSweep, theme: Theme) -> None:
    """Where the first two settings meet, better trials are darker."""
    from matplotlib.colors import LinearSegmentedColormap

    trials = _valued(record)
    (first, of_first), (second, of_second) = list(checked.space.settings.items())[:2]
    across = place([trial.settings[first] for trial in trials], of_first)
    up = place([trial.settings[second] for trial in trials], of_second)
    axes.set_title(f"{record.metric}, written at each trial")
    colours = LinearSegmentedColormap.from_list("values", [theme.grid, theme.after])
    values = [trial.value if record.mode == "max" else -trial.value for trial in trials if trial.value is not None]
    shown = {"s": 2.5 * DOT_POINTS, "edgecolors": theme.faint, "lw": 0.6, "zorder": 3}
    axes.scatter(across.positions, up.positions, c=values, cmap=colours, **shown)
    for trial, x, y in zip(trials, across.positions, up.positions, strict=True):
        text = f"{trial.value:.3g}"
        axes.annotate(text, (x, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=7.5, color=theme.faint)
    _scale(axes, "x", across)
    _scale(axes, "y", up)
    axes.margins(0.14)
    axes.set(xlabel=first, ylabel=second)


def _scale(axes: "Axes", side: str, placed: Placed) -> None:
    axis = axes.xaxis if side == "x" else axes.yaxis
    if placed.labels:
        axes.margins(**{side: 0.15})
        axis.set_ticks(range(len(placed.labels)), labels=[label[:MAX_TICK_LETTERS] for label in placed.labels])
    elif placed.is_log:
        (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    else:
        axes.locator_params(axis=side, nbins=MAX_TICKS)  # else they run into each other where a value has three digits


def _valued(record: SweepRecord) -> list[Trial]:
    return [trial for trial in record.trials if trial.state in DONE and trial.value is not None]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
