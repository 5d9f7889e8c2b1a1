"""The control loop: roll out, score, update, publish; synchronous, so every trajectory is sampled by the newest weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.ledger import TrajectoryLedger
from cluster.metrics import MetricsLog, StageClock
from cluster.types import PublishedWeights, ScoredBatch, UpdateResult
from learners.collection import Collector
from learners.prompt_schedule import PromptSchedule


class Generators(Protocol):
    """Whoever needs the newest weights."""

    def publish(self, weights: PublishedWeights) -> None: ...


class Learner(Protocol):
    """The learner's process group, seen from the driver."""

    def submit(self, batch: ScoredBatch) -> UpdateResult: ...

    def publish(self) -> PublishedWeights: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Where a run writes down what happened."""

    ledger: TrajectoryLedger
    metrics: MetricsLog


class Driver:
    """Runs the steps of one policy-gradient run."""

    def __init__(
        self,
        *,
        schedule: PromptSchedule,
        collector: Collector,
        generators: Generators,
        learner: Learner,
        records: Records,
    ) -> None:
        self._schedule = schedule
        self._collector = collector
        self._generators = generators
        self._learner = learner
        self._records = records

    def run(self, num_steps: int, *, on_step: Callable[[int, Mapping[str, float]], None]) -> int:
        """Run steps 0..num_steps-1; `on_step(step, metrics)` is called after each. Returns the last policy version."""
        version = 0
        for step in range(num_steps):
            metrics = self.run_step(step)
            version = int(metrics["policy/version"])
            on_step(step, metrics)
        return version

    def run_step(self, step: int) -> Mapping[str, float]:
        """One round; returns its metrics. The generators hold the new weights when it returns."""
        clock = StageClock()
        prompts = self._schedule.prompts_of(step)
        with clock.stage("rollout"):
            collected = self._collector.collect(step, prompts)
        batch = ScoredBatch(step=step, groups=collected.groups)
        with clock.stage("learn"):
            update = self._learner.submit(batch)
        with clock.stage("publish"):
            self._generators.publish(self._learner.publish())
        self._records.ledger.record(step, batch.groups)
        metrics = {
            **_rollout_metrics(batch, seconds=clock.wall_s["rollout"]),
            **collected.metrics,
            **update.metrics,
            **{f"time/{stage}_s": seconds for stage, seconds in clock.wall_s.items()},
            "policy/version": float(update.policy_version),
        }
        self._records.metrics.log(step, metrics)
        return metrics


def _rollout_metrics(batch: ScoredBatch, *, seconds: float) -> dict[str, float]:
    """Throughput, and each scorer's mean score."""
    completions = [trajectory.completion for scored in batch.groups for trajectory in scored.group.trajectories]
    rewards = [reward for scored in batch.groups for reward in scored.rewards]
    num_tokens = sum(len(completion.token_ids) for completion in completions)
    scores = {
        f"score/{name}_mean": float(np.mean([reward.breakdown[name] for reward in rewards])) for name in rewards[0].breakdown
    }
    return {
        "rollout/tokens_per_s": num_tokens / seconds,
        "rollout/truncated_frac": float(np.mean([completion.finish_reason == "length" for completion in completions])),
        **scores,
    }
