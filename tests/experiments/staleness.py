"""What staleness costs: python -m tests.experiments.staleness RUNS_DIR PICTURE [--steps N] [--seeds N] [--set KEY=VALUE ...].

A small Transformer is pretrained on sums as in `own_language_model`. Then decoupled PPO trains it synchronously and with rollouts
that may be one and four publications ahead of the learner, with the same settings and as many more steps as fit into the time
(`--ahead-steps 40` for as many as the synchronous run). Generator and learner compute with one thread each, in all runs: as on
devices of their own, a role that waits leaves its core idle. Runs that are complete in RUNS_DIR are not repeated. Prints a table
and draws held-out accuracy over steps and over time. To be run with nothing beside it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from tests.experiments.own_language_model import run, summary, sums

STALENESS: Final = {0: "synchronous", 1: "max_staleness=1", 4: "max_staleness=4"}
COLOURS: Final = {0: "#1f77b4", 1: "#d9822b", 4: "#2a9d6f"}
PRETRAINING_STEPS: Final = 3100  # an eighth of the held-out sums right: 2,700 steps give a twelfth, and 4,000 all
PARTS_OF_STEP: Final = ("time/rollout_s", "time/learn_s", "time/publish_s")
SETTINGS: Final = (
    "learner.algorithm=decoupled_ppo",
    "learner.kl.coef=0.05",  # without it staleness 4 ends four times as far from the start, and lower on held-out sums
    "learner.workers.num_threads=1",
    "generator.num_threads=1",
    "task.num_train=60",  # of all 100 sums
    "task.num_held_out=40",
    "learner.prompts_per_step=60",
    "evaluation.num_prompts=40",
    "evaluation.samples_per_prompt=20",
    "evaluation.every_num_steps=8",
)

Curve = list[tuple[int, float, float]]  # steps done, seconds of training, share of held-out sums right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs_dir", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ahead-steps", type=int, default=50, help="steps of the runs that do not wait: about the same time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="in place of these settings; needs a RUNS_DIR of its own"
    )
    arguments = parser.parse_args()
    runs_dir: Path = arguments.runs_dir
    runs_dir.mkdir(parents=True, exist_ok=True)
    text = runs_dir / "sums.txt"
    text.write_text(sums(), encoding="utf-8")
    pretrain = (f"text.path={text}", "text.end_after=line", "learner.context_tokens=32", f"learner.num_steps={PRETRAINING_STEPS}")
    start = run(runs_dir, "start", "pretrain_bytes.yaml", *pretrain) / "language_model"
    settings = (*SETTINGS, f"model={start}", *arguments.set)
    found: dict[int, list[Path]] = {staleness: [] for staleness in STALENESS}
    for seed in range(arguments.seeds):
        for staleness, of_staleness in found.items():
            steps = arguments.ahead_steps if staleness else arguments.steps
            overrides = (f"asynchronous.max_staleness={staleness}", f"learner.num_steps={steps}", f"seed={seed}")
            name = f"staleness{staleness}-{steps}-s{seed}"
            of_staleness.append(run(runs_dir, name, "ppo_bytes.yaml", *settings, *overrides))
    for staleness, runs in found.items():
        report(staleness, runs)
    draw({staleness: [curve(directory) for directory in runs] for staleness, runs in found.items()}, arguments.picture)


def curve(directory: Path) -> Curve:
    """A point for each evaluation. Seconds are those of steps: neither start nor evaluations count."""
    points, seconds = [], 0.0
    for line in metrics(directory):
        seconds += sum(line.get(part, 0.0) for part in PARTS_OF_STEP)
        if "evaluation/score_mean" in line:
            points.append((line["step"], seconds, line["evaluation/score_mean"]))
    return points


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def report(staleness: int, runs: list[Path]) -> None:
    """A row of the table for each seed, and one for their mean."""
    ends, times = [], []
    for directory in runs:
        lines, points, told = metrics(directory), curve(directory), summary(directory)
        age = statistics.mean(line["rollout/staleness_mean"] for line in lines if "rollout/staleness_mean" in line)
        ends.append(points[-1][2])
        times.append(points[-1][1])
        sys.stdout.write(
            f"| {STALENESS[staleness]} | {told['seed']} | {age:.1f} | {100 * points[0][2]:.1f} to {100 * ends[-1]:.1f} % "
            f"| {told['after']['kl_nats_per_completion']:.2f} | {times[-1]:.0f} |\n"
        )
    if len(runs) > 1:
        sys.stdout.write(
            f"| {STALENESS[staleness]} | all | | {100 * statistics.mean(ends):.1f} % +/- {100 * statistics.stdev(ends):.1f} | "
            f"| {statistics.mean(times):.0f} +/- {statistics.stdev(times):.0f} |\n"
        )


def draw(curves: dict[int, list[Curve]], picture: Path) -> None:
    """Accuracy over steps and over seconds, a thin line a seed and a thick one for their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(11, 4), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, label in zip(panels, (0, 1), ("steps", "seconds of training"), strict=True):
        for staleness, of_seeds in curves.items():
            for points in of_seeds:
                axes.plot(
                    [point[column] for point in points],
                    [point[2] for point in points],
                    color=COLOURS[staleness],
                    lw=0.8,
                    alpha=0.5,
                )
            means = [[statistics.mean(values) for values in zip(*batch, strict=True)] for batch in zip(*of_seeds, strict=True)]
            axes.plot(
                [mean[column] for mean in means],
                [mean[2] for mean in means],
                color=COLOURS[staleness],
                lw=2.2,
                label=STALENESS[staleness],
            )
        axes.set_xlabel(label)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("held-out sums right")
    panels[1].legend(loc="lower right", frameon=False)
    figure.suptitle("Rollouts that do not wait, a core for each role", x=0.01, ha="left", fontweight="bold")
    FigureCanvasAgg(figure).print_png(str(picture))


if __name__ == "__main__":
    main()
