"""What a report says, read from the files of a run directory and nothing else."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cluster.errors import DataError
from cluster.storage.ledger import LedgerEntry, read_ledger
from cluster.storage.run_directory import CONFIG_NAME, read_summary
from learners.evaluation.results import EvaluatedCompletion, EvaluationResult, evaluate_samples
from learners.evaluation.returns import AFTER, BEFORE, EnvironmentEvaluation, read_evaluation
from learners.settings.evaluation import EvaluationConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBand:
    """How long the sampled completions of each step were. Produced from the ledger, consumed by the figure."""

    steps: tuple[int, ...]
    low_tokens: tuple[float, ...]  # 10th percentile
    high_tokens: tuple[float, ...]  # 90th percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that a report shows. Produced by `load_report_data`, consumed by the figure and the page."""

    run_dir: Path
    summary: dict[str, Any]
    config_yaml: str  # empty if the run wrote none
    evaluation: EvaluationConfig
    metrics: tuple[dict[str, Any], ...]  # lines of metrics.jsonl
    lengths: LengthBand
    num_trained: int  # trajectories
    before_samples: tuple[EvaluatedCompletion, ...]  # empty if not evaluated
    after_samples: tuple[EvaluatedCompletion, ...]
    environment: str  # Gymnasium's id; empty for a run that trains a language model
    before_in_environment: EnvironmentEvaluation | None  # of a run in an environment
    after_in_environment: EnvironmentEvaluation | None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(steps, values) of one metric; lines without it, or with null, are left out."""
        lines = [line for line in self.metrics if line.get(name) is not None]
        return [line["step"] for line in lines], [float(line[name]) for line in lines]

    @property
    def num_map_columns(self) -> int:
        """Of the map on which the learned policy is drawn; 0 where there is none."""
        after = self.after_in_environment
        return 0 if after is None or after.grid is None else len(after.grid.cells[0])

    @property
    def has_samples(self) -> bool:
        return bool(self.before_samples or self.after_samples)

    @property
    def before(self) -> EvaluationResult | None:
        return evaluate_samples(self.before_samples, self.evaluation.judges) if self.before_samples else None

    @property
    def after(self) -> EvaluationResult | None:
        return evaluate_samples(self.after_samples, self.evaluation.judges) if self.after_samples else None


def load_report_data(run_dir: Path) -> ReportData:
    """Read a run directory, also of a run that failed or goes on. Raises `DataError` naming a file that is broken."""
    entries = list(read_ledger(run_dir / "trajectories"))
    config_path = run_dir / CONFIG_NAME
    config_yaml = config_path.read_text(encoding="utf-8") if config_path.is_file() else ""
    config: dict[str, Any] = yaml.safe_load(config_yaml) or {}
    config = config.get("policy", config)  # a quickstart's settings of the policy stand under that name
    task = config.get("task", {})
    environment = task["env"] if task.get("kind") == "gymnasium" else ""
    return ReportData(
        run_dir=run_dir,
        summary=read_summary(run_dir),
        config_yaml=config_yaml,
        evaluation=EvaluationConfig() if environment else EvaluationConfig.model_validate(config.get("evaluation", {})),
        metrics=tuple(read_metrics(run_dir / "metrics.jsonl")),
        lengths=_length_band(entries),
        num_trained=sum(entry.outcome == "trained" for entry in entries),
        before_samples=_read_samples(run_dir / "evaluation" / "before.json"),
        after_samples=_read_samples(run_dir / "evaluation" / "after.json"),
        environment=environment,
        before_in_environment=read_evaluation(run_dir / BEFORE),
        after_in_environment=read_evaluation(run_dir / AFTER),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The last line may be cut short by a kill; any other broken line is an error."""
    if not path.is_file():
        return []
    raw_lines = path.read_text(encoding="utf-8").splitlines()
    lines = []
    for number, raw in enumerate(raw_lines, start=1):
        try:
            lines.append(json.loads(raw))
        except ValueError as error:
            if number < len(raw_lines):
                raise DataError(f"{path}:{number}: not JSON: {error}") from error
    return lines


def _read_samples(path: Path) -> tuple[EvaluatedCompletion, ...]:
    if not path.is_file():
        return ()
    try:
        return tuple(EvaluatedCompletion(**sample) for sample in json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a list of evaluated completions: {error}") from error


def _length_band(entries: Sequence[LedgerEntry]) -> LengthBand:
    tokens_by_step: dict[int, list[int]] = {}
    for entry in entries:
        if entry.outcome == "failed" or entry.is_greedy:
            continue
        tokens_by_step.setdefault(entry.step, []).append(entry.completion_tokens)
    bounds = [np.percentile(tokens, (10, 90)) for tokens in tokens_by_step.values()]
    return LengthBand(
        steps=tuple(tokens_by_step),
        low_tokens=tuple(float(low) for low, _ in bounds),
        high_tokens=tuple(float(high) for _, high in bounds),
    )
