"""Panels of the figure for runs in an environment: the learning curve, planning, and the policy on a map."""

from typing import TYPE_CHECKING

import numpy as np

from learners.report.data import ReportData
from learners.report.drawing import Theme, curve, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOW_PERCENTILE = 5  # of the curve: what lies lower, where a learner knows nothing yet, does not set the scale
ARROWS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # on axes whose rows run down
MAX_LETTER_POINTS = 11.0
LETTER_FRAC = 0.21  # of a cell
ARROW_LENGTH = 0.30  # of a cell
LETTERS = {"S": "start", "G": "goal", "H": "hole", "C": "cliff"}  # of the maps


def draw_episode_return(axes: "Axes", data: ReportData, theme: Theme) -> None:
    """Discounted where the run's evaluation is, over what the run counts: episodes, or environment steps."""
    axes.set_title("Return of an episode while learning")
    is_discounted = bool(data.series("episode/discounted_return_mean")[0])
    names = ("episode/return_mean", "episode/return_std")
    if is_discounted:
        names = ("episode/discounted_return_mean", "episode/discounted_return_std")
    (steps, means), (std_steps, stds) = map(data.series, names)
    if std_steps == steps:
        low, high = np.subtract(means, stds), np.add(means, stds)
        axes.fill_between(steps, low, high, color=theme.after, alpha=0.16, lw=0, label="\N{PLUS-MINUS SIGN} 1 std of episodes")
    curve(axes, steps, means, theme.after, "as it explores")
    shown = list(means)
    learned_steps, learned = data.series("episode/expected_return")
    if learned_steps:
        axes.plot(learned_steps, learned, color=theme.accent, lw=1.6, label="learned policy, exact")
        shown += learned
    evaluated_steps, evaluated = data.series("episode/evaluated_return_mean")
    if evaluated_steps:
        axes.plot(evaluated_steps, evaluated, "o-", color=theme.accent, lw=1.2, ms=3.5, label="evaluated on the way")
        shown += evaluated
    after = data.after_in_environment
    if after is not None and after.optimal_return is not None:
        axes.axhline(after.optimal_return, color=theme.ink, lw=1.2, ls="--", label=f"optimum {after.optimal_return:.3f}")
        shown.append(after.optimal_return)
    elif after is not None and not is_discounted and steps:
        label = f"after, without exploration: {after.return_mean:.4g}"
        best = data.summary.get("best")
        step = steps[-1] if best is None else best["env_step"]
        axes.plot(step, after.return_mean, "D", color=theme.accent, ms=5, label=label, clip_on=False)
        shown.append(after.return_mean)
    low, high = float(np.percentile(shown, LOW_PERCENTILE)), max(shown)
    margin = 0.08 * (high - low) or 1.0
    label, unit = ("episode", "discounted return") if is_discounted else ("environment step", "return")
    axes.set(xlabel=label, ylabel=unit, ylim=(low - margin, high + margin))
    legend_above(axes)


def draw_episode_length(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Length of an episode")
    steps, means = data.series("episode/length_mean")
    curve(axes, steps, means, theme.stages[3], "mean")
    is_by_episode = bool(data.series("episode/discounted_return_mean")[0])
    axes.set(xlabel="episode" if is_by_episode else "environment step", ylabel="steps", ylim=(0, max(means) * 1.1))


def draw_learner_health(axes: "Axes", data: ReportData, theme: Theme) -> None:
    """Of a learner with a critic."""
    axes.set_title("Health of the updates")
    for name, label, colour in (
        ("value/explained_variance", "critic: explained variance", theme.after),
        ("policy/entropy", "entropy of the policy, nats", theme.stages[3]),
        ("policy/approx_kl", "KL of one update, nats", theme.accent),
    ):
        steps, values = data.series(name)
        if steps:
            curve(axes, steps, np.clip(values, -1, None).tolist(), colour, label)
    axes.set_xlabel("environment step")
    legend_above(axes)


def draw_action_values(axes: "Axes", data: ReportData, theme: Theme) -> None:
    """What a learner of action values expects, and how far off its batches are."""
    axes.set_title("Values of the actions that were taken")
    for name, label, colour in (
        ("value/q_mean", "mean value", theme.after),
        ("value/td_error_mean", "mean error of a batch", theme.accent),
    ):
        steps, values = data.series(name)
        if steps:
            curve(axes, steps, values, colour, label)
    axes.set(xlabel="environment step", ylabel="discounted return")
    legend_above(axes)


def draw_policy_loss(axes: "Axes", data: ReportData, theme: Theme) -> None:
    """Of a learner that has no episodes of its own."""
    axes.set_title("Loss of the policy")
    steps, values = data.series("policy/loss")
    curve(axes, steps, values, theme.after, "mean over a batch")
    axes.set_xlabel("environment step")
    legend_above(axes)


def draw_planning(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Value of the start while planning")
    steps, values = data.series("planning/start_value")
    curve(axes, steps, values, theme.after, "value")
    after = data.after_in_environment
    if after is not None and after.optimal_return is not None:
        axes.axhline(after.optimal_return, color=theme.ink, lw=1.2, ls="--", label=f"optimum {after.optimal_return:.4f}")
    axes.set(xlabel="sweep", ylabel="discounted return")
    legend_above(axes)


def draw_grid(axes: "Axes", data: ReportData, theme: Theme) -> None:
    """Values as colours and numbers, the learned policy as arrows."""
    from matplotlib.colors import LinearSegmentedColormap

    assert data.after_in_environment is not None, "such runs have no map"
    grid = data.after_in_environment.grid
    assert grid is not None, "such runs have no map"
    axes.set_title("Values and greedy actions")
    cells, values = np.array(grid.cells), np.array(grid.values)
    decided = np.array(grid.arrows) != ""
    colours = LinearSegmentedColormap.from_list("values", [theme.background, theme.after])
    axes.imshow(np.where(decided, values, np.nan), cmap=colours, alpha=0.55, aspect="equal")
    size = min(MAX_LETTER_POINTS, LETTER_FRAC * _cell_points(axes, cells.shape))
    for (row, column), letter in np.ndenumerate(cells):
        if letter in LETTERS:
            shown, colour = LETTERS[letter], theme.accent if letter == "G" else theme.faint
            where = (column, row) if not decided[row, column] else (column - 0.46, row - 0.38)
            alignment = {"ha": "center", "va": "center"} if not decided[row, column] else {"ha": "left", "va": "center"}
            axes.text(*where, shown, color=colour, fontsize=size * 0.8, fontweight="bold", **alignment)
        if decided[row, column]:
            _draw_decision(axes, row, column, grid.arrows[row][column], grid.values[row][column], theme, size=size)
    axes.set_xticks(np.arange(-0.5, cells.shape[1]), labels=[])
    axes.set_yticks(np.arange(-0.5, cells.shape[0]), labels=[])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)


def _cell_points(axes: "Axes", shape: tuple[int, ...]) -> float:
    """Height and width of a cell on paper, in points of 1/72 inch."""
    figure = axes.get_figure()
    assert figure is not None, "a panel is drawn in a figure"
    width, height = axes.get_window_extent().size * 72 / figure.dpi
    return float(min(width / shape[1], height / shape[0]))


def _draw_decision(axes: "Axes", row: int, column: int, arrow: str, value: float, theme: Theme, *, size: float) -> None:
    right, down = ARROWS[arrow]
    start = (column - right * ARROW_LENGTH, row - down * ARROW_LENGTH - 0.08)
    end = (column + right * ARROW_LENGTH, row + down * ARROW_LENGTH - 0.08)
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": theme.ink, "lw": 1.1, "mutation_scale": size})
    axes.text(column, row + 0.36, f"{value:.2g}", color=theme.ink, fontsize=size * 0.8, ha="center", va="center")
