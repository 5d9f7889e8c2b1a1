"""Draws the learning curves of the arithmetic runs: python tests/experiments/arithmetic_curves.py RUNS_DIR PICTURE.

RUNS_DIR holds `<method>-s<seed>` folders, made with `rayward train configs/train/<method>_arithmetic.yaml seed=S name=...`.
"""

import json
import statistics
import sys
from pathlib import Path

METHODS = {"grpo": "GRPO", "rloo": "RLOO", "reinforce_plus_plus": "REINFORCE++", "ppo": "PPO"}
COLOURS = ("#1f77b4", "#d9822b", "#2a9d6f", "#a04ec4")
ASKED_GAIN = 0.10

Curve = tuple[list[int], list[float]]


def held_out_curve(run: Path) -> Curve:
    """(steps done, share of held-out sums answered right)."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    points = {line["step"]: line["evaluation/score_mean"] for line in lines if "evaluation/score_mean" in line}
    return list(points), list(points.values())


def main(runs_dir: Path, picture: Path) -> None:
    """One panel a method, one line a seed; prints the table that stands beside the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(13, 3.6), dpi=90, layout="constrained")
    panels = figure.subplots(1, len(METHODS), sharey=True)
    for axes, (method, title), colour in zip(panels, METHODS.items(), COLOURS, strict=True):
        gains, starts = [], []
        for style, run in zip(("-", "--", ":"), sorted(runs_dir.glob(f"{method}-s?")), strict=False):
            steps, shares = held_out_curve(run)
            axes.plot(steps, shares, style, color=colour, marker="o", ms=4, label=f"seed {run.name[-1]}")
            gains.append(100 * (shares[-1] - shares[0]))
            starts.append(shares[0])
            seconds = sum(json.loads((run / "summary.json").read_text())["wall_s"].values())
            sys.stdout.write(f"{method} {run.name[-1]}: {shares[0]:.3f} to {shares[-1]:.3f} in {seconds / 60:.1f} min\n")
        axes.axhline(max(starts) + ASKED_GAIN, color="#999999", lw=1, ls="-.", label="highest start + 10")
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_xlabel("step (128 completions)")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower right", frameon=False)
        spread = statistics.stdev(gains) if len(gains) > 1 else float("nan")
        sys.stdout.write(f"{method}: {statistics.mean(gains):+.1f} points, deviation {spread:.1f}\n")
    panels[0].set_ylabel("held-out sums right")
    FigureCanvasAgg(figure).print_png(str(picture))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
