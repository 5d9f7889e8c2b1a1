"""What trials are compared by: which number follows from a configuration, and where a run's files have it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.storage.run_directory import METRICS_NAME, SUMMARY_NAME, read_summary
from learners.report.data import read_metrics
from learners.settings.run import (
    PolicyRunConfig,
    PretrainingRunConfig,
    RewardModelRunConfig,
    RLlibRunConfig,
    TabularRunConfig,
    TokenRunConfig,
    TrainingRunConfig,
)

REWARD_MODEL = "reward_model"
SECTIONS = ("before", "after", REWARD_MODEL)  # of summary.json, whose numbers are metrics as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How runs of one kind compare. Produced by `compared_by`, consumed by sweeps."""

    at_the_end: str  # the metric that judges a whole run
    on_the_way: str  # one that grows with metrics.jsonl, for a scheduler that does not wait for the end
    last_step: int | None  # of the lines with it; None where the configuration does not say


def compared_by(config: TrainingRunConfig) -> Compared:
    """What is best told by the run's own evaluation."""
    if isinstance(config, PolicyRunConfig):
        return Compared(at_the_end="after/score_mean", on_the_way="score/mean", last_step=config.learner.num_steps - 1)
    if isinstance(config, RewardModelRunConfig):
        return Compared(at_the_end=f"{REWARD_MODEL}/accuracy", on_the_way="reward_model/train_accuracy", last_step=None)
    if isinstance(config, TabularRunConfig):
        return Compared(
            at_the_end="after/return_mean",
            on_the_way="episode/discounted_return_mean",
            last_step=config.learner.num_episodes,
        )
    if isinstance(config, PretrainingRunConfig):
        return Compared(
            at_the_end="after/logprob_mean", on_the_way="pretraining/logprob_mean", last_step=config.learner.num_steps
        )
    if isinstance(config, TokenRunConfig):
        return Compared(at_the_end="after/score_mean", on_the_way="episode/return_mean", last_step=config.learner.num_env_steps)
    if isinstance(config, RLlibRunConfig):
        return Compared(
            at_the_end="after/return_mean",
            on_the_way="episode/return_mean",
            last_step=config.learner.num_env_steps,
        )
    return Compared(at_the_end="after/return_mean", on_the_way="planning/start_value", last_step=None)


def metric_points(run: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each line of metrics.jsonl that has it; a number that was not finite is none."""
    lines = read_metrics(run / METRICS_NAME)
    return [(line["step"], float(line[metric])) for line in lines if line.get(metric) is not None]


def final_value(run: Path, metric: str) -> float | None:
    """Of a run that has ended."""
    found = _summary_numbers(run).get(metric)
    if found is not None:
        return found
    points = metric_points(run, metric)
    return points[-1][1] if points else None


def known_metrics(run: Path) -> list[str]:
    """All that trials could be compared by."""
    lines = read_metrics(run / METRICS_NAME)
    in_lines = {name for line in lines for name, value in line.items() if "/" in name and value is not None}
    return sorted(in_lines | set(_summary_numbers(run)))


def _summary_numbers(run: Path) -> dict[str, float]:
    summary: dict[str, Any] = read_summary(run) if (run / SUMMARY_NAME).is_file() else {}
    return {
        f"{section}/{name}": float(value)
        for section in SECTIONS
        for name, value in summary.get(section, {}).items()
        if isinstance(value, int | float)
    }
