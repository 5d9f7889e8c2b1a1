"""The control loop: roll out, score, update, publish; synchronous, so every trajectory is sampled by the newest weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cluster.errors import ConfigError
from cluster.ledger import TrajectoryLedger
from cluster.metrics import MetricsLog, StageClock
from cluster.seeding import derive_seed
from cluster.types import (
    Prompt,
    PublishedWeights,
    SamplingParameters,
    ScoredBatch,
    ScoredGroup,
    TrajectoryGroup,
    UpdateResult,
)


class Rollouts(Protocol):
    """The generators, seen from the driver."""

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Iterator[TrajectoryGroup]: ...

    def publish(self, weights: PublishedWeights) -> None: ...


class Scoring(Protocol):
    """The scorers, seen from the driver."""

    def score_stream(self, groups: Iterable[TrajectoryGroup]) -> Iterator[ScoredGroup]: ...


class Learner(Protocol):
    """The learner's process group, seen from the driver."""

    def submit(self, batch: ScoredBatch) -> UpdateResult: ...

    def publish(self) -> PublishedWeights: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Where a run writes down what happened."""

    ledger: TrajectoryLedger
    metrics: MetricsLog


class PromptSchedule:
    """Which prompts a step uses: each epoch is a permutation of all prompts, drawn from (seed, epoch).

    A step stays within one epoch, so that no prompt is in it twice; those that do not fill a last step sit the epoch out.
    """

    def __init__(self, prompts: Sequence[Prompt], *, prompts_per_step: int, seed: int) -> None:
        if len(prompts) < prompts_per_step:
            raise ConfigError(
                f"learner.prompts_per_step={prompts_per_step}, but the task has only {len(prompts)} prompts; lower it"
            )
        self._prompts = prompts
        self._prompts_per_step = prompts_per_step
        self._seed = seed

    def prompts_of(self, step: int) -> list[Prompt]:
        """The prompts of step 0, 1, ...; depends on nothing but the step."""
        epoch, step_in_epoch = divmod(step, len(self._prompts) // self._prompts_per_step)
        order = np.random.default_rng(derive_seed(self._seed, "prompts", epoch)).permutation(len(self._prompts))
        first = step_in_epoch * self._prompts_per_step
        return [self._prompts[index] for index in order[first : first + self._prompts_per_step].tolist()]


class Driver:
    """Runs the steps of one policy-gradient run."""

    def __init__(
        self,
        *,
        schedule: PromptSchedule,
        rollouts: Rollouts,
        scoring: Scoring,
        learner: Learner,
        records: Records,
        sampling: SamplingParameters,
    ) -> None:
        self._schedule = schedule
        self._rollouts = rollouts
        self._scoring = scoring
        self._learner = learner
        self._records = records
        self._sampling = sampling

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
            batch = self._collect(step, prompts)
        with clock.stage("learn"):
            update = self._learner.submit(batch)
        with clock.stage("publish"):
            self._rollouts.publish(self._learner.publish())
        self._records.ledger.record(step, batch.groups)
        metrics = {
            **_rollout_metrics(batch, seconds=clock.wall_s["rollout"]),
            **update.metrics,
            **{f"time/{stage}_s": seconds for stage, seconds in clock.wall_s.items()},
            "policy/version": float(update.policy_version),
        }
        self._records.metrics.log(step, metrics)
        return metrics

    def _collect(self, step: int, prompts: Sequence[Prompt]) -> ScoredBatch:
        """Generate and score; scoring of the first groups overlaps the generation of the last."""
        sampling = replace(self._sampling, seed=derive_seed(self._sampling.seed, "rollout", step))
        scored = list(self._scoring.score_stream(self._rollouts.collect(prompts, sampling)))
        # Groups arrive as they finish; the learner's batch must not depend on who was faster.
        position = {prompt.task.task_id: index for index, prompt in enumerate(prompts)}
        scored.sort(key=lambda group: position[group.group.prompt.task.task_id])
        return ScoredBatch(step=step, groups=tuple(scored))


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
