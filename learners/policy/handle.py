"""The policy-gradient learner as the driver sees it. Imports no torch: only the ranks do."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray

from actors.config import DType
from cluster.types import PublishedWeights, ScoredBatch, Trajectory, UpdateResult
from learners.policy import commands
from learners.policy.start import StartingPoint
from learners.ranks.handle import RanksHandle, RanksPlan
from learners.ranks.mailbox import Call, CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from learners.weights.link import GeneratorLink


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerFolders:
    """Where a learner writes. Produced by `learners.run.composition`, consumed by `PolicyLearnerHandle`."""

    storage: Path  # Ray Train's own records
    weights: Path  # published weights, in shared memory of the generators' host
    weights_dtype: DType  # of published and exported weights: what generators compute in


class PolicyLearnerHandle(RanksHandle):
    """Plain calls to the ranks of a `PolicyLearner`."""

    def __init__(
        self, start: StartingPoint, config: PolicyLearnerConfig, folders: LearnerFolders, checkpoints: CheckpointPlan
    ) -> None:
        super().__init__(
            RanksPlan(
                name="learner",
                build=partial(commands.build, start, config),
                workers=config.workers,
                checkpoints=checkpoints,
                storage=folders.storage,
            )
        )
        self._folders = folders
        self._publish = Call(
            function=commands.publish, arguments=(folders.weights.absolute(), folders.weights_dtype), on_rank_0=True
        )

    def submit(self, batch: ScoredBatch) -> UpdateResult:
        """Train on one batch."""
        result: UpdateResult = self.call(Call(function=commands.update, arguments=(ray.put(batch),)))
        return result

    def completion_logprobs(self, trajectories: Sequence[Trajectory]) -> tuple[tuple[float, ...], ...]:
        """Log-probability of each completion token, in nats, under the current policy."""
        logprobs: tuple[tuple[float, ...], ...] = self.call(
            Call(function=commands.completion_logprobs, arguments=(ray.put(list(trajectories)),))
        )
        return logprobs

    def start_kl(self, trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
        """log(policy / policy at the run's start) summed over each completion, in nats."""
        kls: tuple[float, ...] = self.call(Call(function=commands.start_kl, arguments=(ray.put(list(trajectories)),)))
        return kls

    def connect(self, link: GeneratorLink) -> None:
        """From here on, `publish` sends weights over devices instead of writing them. The generators must be ready."""
        self.call(Call(function=commands.connect, arguments=(link,)))
        self._publish = Call(function=commands.send_weights)

    def publish(self) -> PublishedWeights:
        """Write the current weights where generators find them, or send them there."""
        weights: PublishedWeights = self.call(self._publish)
        return weights

    def export(self, directory: Path) -> None:
        """Write the current policy as a new Hugging Face folder."""
        arguments = (directory.absolute(), self._folders.weights_dtype)
        self.call(Call(function=commands.export, arguments=arguments, on_rank_0=True))
