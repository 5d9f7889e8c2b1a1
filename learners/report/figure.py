"""The figure of a run: what was learned, at what cost in KL, and where the time went."""

import math
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from learners.evaluation.results import EvaluatedCompletion, EvaluationResult
from learners.report.data import ReportData
from learners.report.drawing import DOTS_PER_INCH, PANEL_INCHES, Theme, curve, legend_above, margins, style
from learners.report.environment_figure import (
    draw_action_values,
    draw_episode_length,
    draw_episode_return,
    draw_grid,
    draw_learner_health,
    draw_planning,
    draw_policy_loss,
)
from learners.settings.evaluation import JudgeConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 3
MAX_MAP_COLUMNS = 8  # a map with more has a row of its own
NUM_BINS = 18
HEADROOM = 1.35  # of a bar or a mean line, for the legend above it
STAGE_SERIES = {  # metric in seconds -> label; scoring overlaps generation, so a rollout is one stage
    "time/rollout_s": "rollout",
    "time/prepare_s": "prepare",
    "time/update_s": "update",
    "time/publish_s": "publish",
}


def draw_figure(data: ReportData, theme: Theme) -> bytes:
    """The figure as PNG: those panels that the run has data for, three in a row; below them wide ones in their own rows."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(data) or [_draw_nothing]
    wide = _wide_panels(data)
    num_columns = min(len(panels), MAX_COLUMNS)
    num_rows = math.ceil(len(panels) / num_columns) + len(wide)
    size = (PANEL_INCHES[0] * num_columns, PANEL_INCHES[1] * num_rows)
    with rc_context(style(theme)):
        figure = Figure(figsize=size, dpi=DOTS_PER_INCH)
        figure.subplots_adjust(**margins(num_rows, num_columns))
        for number, draw in enumerate(panels, start=1):
            draw(figure.add_subplot(num_rows, num_columns, number), data, theme)
        for row, draw in enumerate(reversed(wide)):
            draw(figure.add_subplot(num_rows, 1, num_rows - row), data, theme)
        buffer = BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "rayward"})
    return buffer.getvalue()


def _draw_nothing(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.text(0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", va="center", color=theme.faint)
    axes.set_axis_off()


def _draw_score(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Reward while training")
    steps, means = data.series("score/mean")
    std_steps, stds = data.series("score/std")
    if std_steps == steps:
        low, high = np.subtract(means, stds), np.add(means, stds)
        axes.fill_between(steps, low, high, color=theme.after, alpha=0.16, lw=0, label="\N{PLUS-MINUS SIGN} 1 std of completions")
    curve(axes, steps, means, theme.after, "mean")
    held_out_steps, held_out = data.series("evaluation/score_mean")
    if held_out_steps:
        axes.plot(held_out_steps, held_out, "D", color=theme.accent, ms=5, label="held-out prompts", clip_on=False)
    axes.set(xlabel="step", ylabel="score")
    legend_above(axes)


def _draw_kl(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Distance from the reference")
    steps, values = data.series("policy/ref_kl_nats_per_completion")
    curve(axes, steps, values, theme.accent, "KL(policy, reference)")
    axes.axhline(0, color=theme.faint, lw=0.8)
    axes.set(xlabel="step", ylabel="nats per completion")


def _draw_score_over_kl(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Reward for the KL spent")
    scores = dict(zip(*data.series("score/mean"), strict=True))
    kls = dict(zip(*data.series("policy/ref_kl_nats_per_completion"), strict=True))
    steps = [step for step in scores if step in kls]
    axes.plot([kls[step] for step in steps], [scores[step] for step in steps], color=theme.grid, lw=1.2, zorder=1)
    colours = [(theme.after, 0.25 + 0.75 * (index + 1) / len(steps)) for index in range(len(steps))]  # later is darker
    axes.scatter([kls[step] for step in steps], [scores[step] for step in steps], c=colours, s=26, zorder=2)
    for step in {steps[0], steps[-1]}:
        axes.annotate(
            f"step {step}", (kls[step], scores[step]), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8.5
        )
    axes.margins(x=0.12, y=0.18)
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel="nats per completion", ylabel="score")


def _draw_lengths(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Completion length")
    steps, means = data.series("rollout/completion_tokens_mean")
    band = data.lengths
    if band.steps:
        axes.fill_between(
            band.steps,
            band.low_tokens,
            band.high_tokens,
            color=theme.stages[3],
            alpha=0.16,
            lw=0,
            label="10th to 90th percentile",
        )
    curve(axes, steps, means, theme.stages[3], "mean")
    top = max([*means, *band.high_tokens])
    axes.set(xlabel="step", ylabel="tokens", ylim=(0, top * HEADROOM))
    axes.legend(loc="upper left")


def _draw_scores_before_after(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Held-out score, before and after")
    _histograms(axes, data, theme, lambda sample: sample.score, lambda result: f"{result.score_mean:+.2f}")
    axes.set(xlabel="score of one completion", ylabel="share of completions")


def _draw_judge(judge: JudgeConfig, axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title(f"Not trained on: {judge.shown}")

    def found(result: EvaluationResult) -> str:
        if judge.share_above is None:
            return f"{result.judge_means[judge.function]:+.2f}"
        return f"{result.judge_shares[judge.function]:.0%} {judge.share_title}".strip()

    _histograms(axes, data, theme, lambda sample: sample.judgements[judge.function], found)
    label = "judgement of one completion"
    if judge.share_above is not None:
        axes.axvline(judge.share_above, ymax=1 / HEADROOM, color=theme.faint, lw=0.9, ls=":")
        label += f" (share: above {judge.share_above:g})"
    axes.set(xlabel=label, ylabel="share of completions")


def _draw_times(axes: "Axes", data: ReportData, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title("Wall time of a step")
    steps = sorted({line["step"] for line in data.metrics if line.get("time/rollout_s") is not None})
    bottoms = np.zeros(len(steps))
    for (name, label), colour in zip(STAGE_SERIES.items(), theme.stages, strict=True):
        seconds_by_step = dict(zip(*data.series(name), strict=True))
        seconds = np.array([seconds_by_step.get(step, 0.0) for step in steps])
        if seconds.any():
            axes.bar(steps, seconds, bottom=bottoms, width=0.82, color=colour, lw=0, label=f"{label} {seconds.mean():.1f} s")
        bottoms += seconds
    axes.set(xlabel="step", ylabel="seconds", ylim=(0, bottoms.max() * 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=2, columnspacing=1.2, handlelength=1.0)


def _draw_reward_model(axes: "Axes", data: ReportData, theme: Theme) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_title("Reward model: pairs in the right order")
    steps, values = data.series("reward_model/train_accuracy")
    axes.plot(steps, values, color=theme.after, lw=0.9, alpha=0.4)
    smooth = _running_mean(values)
    axes.plot(steps, smooth, color=theme.after, label="training batches")
    found = data.summary.get("reward_model", {})
    if "human_agreement" in found:
        axes.axhline(
            found["human_agreement"], color=theme.accent, ls="--", lw=1.4, label=f"one human {found['human_agreement']:.0%}"
        )
    if "accuracy" in found:
        axes.plot(
            steps[-1], found["accuracy"], "o", color=theme.ink, ms=7, label=f"held out {found['accuracy']:.0%}", clip_on=False
        )
    axes.axhline(0.5, color=theme.faint, ls=":", lw=1.2, label="chance")
    axes.set(xlabel="reward-model step", ylabel="share of pairs", ylim=(min(0.25, *values), 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(loc="lower right", ncols=2, columnspacing=1.2)


def _draw_perplexity(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Perplexity of a token")
    steps, logprobs = data.series("pretraining/logprob_mean")
    curve(axes, steps, np.exp(np.negative(logprobs)).tolist(), theme.after, "training windows")
    if "perplexity" in (after := data.summary.get("after", {})):
        label = f"held out {after['perplexity']:.2f}"
        axes.plot(steps[-1], after["perplexity"], "o", color=theme.ink, ms=7, label=label, clip_on=False)
    axes.set(xlabel="step", yscale="log")
    legend_above(axes)


def _draw_update_health(axes: "Axes", data: ReportData, theme: Theme) -> None:
    axes.set_title("Health of the updates")
    curves = (
        ("value/explained_variance", "critic: explained variance", theme.after),
        ("policy/clip_frac", "clipped share of tokens", theme.accent),
        ("policy/approx_kl", "KL of one update, nats per token", theme.stages[3]),
    )
    for name, label, colour in curves:
        steps, values = data.series(name)
        if steps:
            curve(axes, steps, np.clip(values, -1, None).tolist(), colour, label)
    axes.set_xlabel("step")
    legend_above(axes)


def _running_mean(values: list[float]) -> list[float]:
    """Mean over the latest tenth of the curve so far, at least one value."""
    window = max(1, len(values) // 10)
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]


def _histograms(
    axes: "Axes",
    data: ReportData,
    theme: Theme,
    value_of: Callable[[EvaluatedCompletion], float],
    found: Callable[[EvaluationResult], str],
) -> None:
    """Both policies over the same bins, as shares of their completions; `found`: a policy's result, for the legend."""
    from matplotlib.ticker import PercentFormatter

    sets = [("before", data.before_samples, data.before, theme.before), ("after", data.after_samples, data.after, theme.after)]
    values = [value_of(sample) for _, samples, _, _ in sets for sample in samples]
    bins = np.histogram_bin_edges(values, bins=NUM_BINS)
    top = 0.0
    for name, samples, result, colour in sets:
        if result is None:
            continue
        points = [value_of(sample) for sample in samples]
        mean = float(np.mean(points))
        shares, _ = np.histogram(points, bins=bins)
        shares = shares / len(points)
        axes.stairs(shares, bins, fill=True, color=colour, alpha=0.30)
        axes.stairs(shares, bins, color=colour, lw=1.6, label=f"{name}: {found(result)}")
        axes.axvline(mean, ymax=1 / HEADROOM, color=colour, ls="--", lw=1.3)
        top = max(top, float(shares.max()))
    axes.set_ylim(0, top * HEADROOM)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(loc="upper left")


Panel = Callable[["Axes", ReportData, Theme], None]
CURVES_OF_LEARNING: tuple[tuple[str, Panel], ...] = (  # (metric that it needs, panel)
    ("reward_model/train_accuracy", _draw_reward_model),
    ("pretraining/logprob_mean", _draw_perplexity),
    ("episode/return_mean", draw_episode_return),
    ("episode/length_mean", draw_episode_length),
    ("value/q_mean", draw_action_values),
    ("planning/start_value", draw_planning),
    ("score/mean", _draw_score),
    ("policy/ref_kl_nats_per_completion", _draw_kl),
    ("policy/ref_kl_nats_per_completion", _draw_score_over_kl),
    ("policy/clip_frac", _draw_update_health),
    ("rollout/completion_tokens_mean", _draw_lengths),
)


def _wide_panels(data: ReportData) -> list[Panel]:
    return [draw_grid] if data.num_map_columns > MAX_MAP_COLUMNS else []


def _panels(data: ReportData) -> list[Panel]:
    """Those that the run has data for."""
    panels = [draw for needed, draw in CURVES_OF_LEARNING if data.series(needed)[0]]
    if data.environment and data.series("policy/loss")[0] and not data.series("episode/return_mean")[0]:
        panels.append(draw_policy_loss)
    if data.environment and data.series("value/explained_variance")[0]:
        panels.append(draw_learner_health)
    if data.has_samples:
        panels += [_draw_scores_before_after, *(partial(_draw_judge, judge) for judge in data.evaluation.judges)]
    if 0 < data.num_map_columns <= MAX_MAP_COLUMNS:
        panels.append(draw_grid)
    if data.series("time/rollout_s")[0]:
        panels.append(_draw_times)
    return panels
