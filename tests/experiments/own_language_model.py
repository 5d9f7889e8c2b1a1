"""One start, one reward, one budget, two learners: python tests/experiments/own_language_model.py RUNS_DIR PICTURE.

A small Transformer is pretrained on sums. Then RLlib's PPO and ours train it on three seeds each, with the settings of
configs/train/ppo_tokens.yaml and ppo_bytes.yaml. Runs that are complete in RUNS_DIR are not repeated, interrupted ones go on.
Prints a table and draws the learning curves. A quarter of an hour on two cores.
"""

import json
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.ledger import read_ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "train"
NUM_LINES = 6000
SEEDS = (0, 1, 2)
LAST_TOKENS = 8000  # over which the reward at the end of training is averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One of the two learners."""

    name: str
    title: str
    config: str
    colour: str


METHODS = (
    Method(name="rllib", title="RLlib's PPO", config="ppo_tokens.yaml", colour="#d9822b"),
    Method(name="ours", title="our PPO", config="ppo_bytes.yaml", colour="#1f77b4"),
)

Point = tuple[int, int, float]  # tokens so far, episodes of the batch, their mean reward


def main(runs_dir: Path, picture: Path) -> None:
    """Run what is missing, then report."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    text = runs_dir / "sums.txt"
    text.write_text(sums(), encoding="utf-8")
    pretrain = (f"text.path={text}", "text.end_after=line", "learner.context_tokens=32")
    start = run(runs_dir, "start", "pretrain_bytes.yaml", *pretrain) / "language_model"
    runs = {
        method.name: [run(runs_dir, f"{method.name}-s{seed}", method.config, f"model={start}", f"seed={seed}") for seed in SEEDS]
        for method in METHODS
    }
    for method in METHODS:
        report(method, runs[method.name])
    held_out = {method.title: [summary(each)["after"]["score_mean"] for each in runs[method.name]] for method in METHODS}
    compare(held_out, "held-out reward")
    compare({method.title: [at_the_end(curve(each)) for each in runs[method.name]] for method in METHODS}, "reward in training")
    draw(runs, picture)


def sums() -> str:
    """Lines such as `3 + 4 = 7`, each drawn from all sums of two digits."""
    generator = random.Random(0)
    pairs = [(generator.randrange(10), generator.randrange(10)) for _ in range(NUM_LINES)]
    return "".join(f"{first} + {second} = {first + second}\n" for first, second in pairs)


def run(runs_dir: Path, name: str, config: str, *overrides: str) -> Path:
    """The run's directory, once it is complete."""
    directory = runs_dir / name
    if not (directory / "summary.json").is_file():
        arguments = ["train", str(CONFIGS / config), f"runs_dir={runs_dir}", f"name={name}", *overrides]
    elif summary(directory)["state"] != "completed":
        arguments = ["resume", str(directory)]
    else:
        return directory
    subprocess.run([sys.executable, "-m", "rayward", "-q", *arguments], check=True)
    return directory


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def curve(run: Path) -> list[Point]:
    """A point for each batch. RLlib's runs have metrics by environment step, which is a token; ours have a ledger."""
    if (run / "trajectories").is_dir():
        return _curve_of_ledger(run / "trajectories")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    points, before = [], 0
    for line in lines:
        num_episodes = round((line["step"] - before) / line["episode/length_mean"])
        points.append((line["step"], num_episodes, line["episode/return_mean"]))
        before = line["step"]
    return points


def _curve_of_ledger(ledger: Path) -> list[Point]:
    steps: dict[int, list[tuple[int, float]]] = {}
    for entry in read_ledger(ledger):
        if entry.reward is not None:
            steps.setdefault(entry.step, []).append((entry.completion_tokens, entry.reward))
    points, num_tokens = [], 0
    for _, episodes in sorted(steps.items()):
        num_tokens += sum(tokens for tokens, _ in episodes)
        points.append((num_tokens, len(episodes), statistics.mean(reward for _, reward in episodes)))
    return points


def at_the_end(points: list[Point]) -> float:
    """Mean reward of the last episodes."""
    last = [(episodes, reward) for tokens, episodes, reward in points if tokens > points[-1][0] - LAST_TOKENS]
    return sum(episodes * reward for episodes, reward in last) / sum(episodes for episodes, _ in last)


def report(method: Method, runs: list[Path]) -> None:
    """A row of the table for each seed."""
    for directory in runs:
        found, points = summary(directory), curve(directory)
        before, after = found["before"], found["after"]
        sys.stdout.write(
            f"| {method.title} | {found['seed']} | {points[-1][0]:,} | {sum(episodes for _, episodes, _ in points):,} "
            f"| {points[0][2]:.3f} to {at_the_end(points):.3f} | {before['score_mean']:.3f} to {after['score_mean']:.3f} "
            f"| {after['kl_nats_per_completion']:.2f} | {found['wall_s']['train']:.0f} |\n"
        )


def compare(values: dict[str, list[float]], what: str) -> None:
    """Means over seeds, and how many standard errors they are apart."""
    means = {title: statistics.mean(found) for title, found in values.items()}
    variance = sum(statistics.variance(found) / len(found) for found in values.values())
    first, second = means.values()
    shown = ", ".join(f"{title} {mean:.3f} +/- {statistics.stdev(values[title]):.3f}" for title, mean in means.items())
    sys.stdout.write(f"{what}: {shown}; apart by {abs(first - second) / variance**0.5:.1f} standard errors\n")


def draw(runs: dict[str, list[Path]], picture: Path) -> None:
    """Reward over tokens, a thin line a seed and a thick one for their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        _draw_method(axes, method, [curve(directory) for directory in runs[method.name]])
    axes.set(xlabel="tokens sampled", ylabel="right sums among those sampled for training", ylim=(0, None))
    axes.set_title("One start, one reward, one budget", loc="left", fontweight="bold")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    FigureCanvasAgg(figure).print_png(str(picture))


def _draw_method(axes: "Axes", method: Method, curves: list[list[Point]]) -> None:
    for points in curves:
        axes.plot([tokens for tokens, _, _ in points], [reward for *_, reward in points], color=method.colour, lw=0.8, alpha=0.5)
    batches = list(zip(*curves, strict=False))
    tokens = [statistics.mean(point[0] for point in batch) for batch in batches]
    rewards = [statistics.mean(point[2] for point in batch) for batch in batches]
    axes.plot(tokens, rewards, color=method.colour, lw=2.2, label=f"{method.title}, mean of {len(curves)} seeds")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
