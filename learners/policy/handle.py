"""The policy-gradient learner as the driver sees it. Imports no torch: only the ranks do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from actors.config import DType
from cluster.errors import LearnerRestartedError
from cluster.storage.serving_contract import ContractText
from cluster.types import FloatArray, PublishedWeights, ScoredBatch, ScoredGroup, SentWeights, TrajectoryGroup, UpdateResult
from learners.policy import commands
from learners.policy.start import StartingPoint
from learners.ranks.handle import RanksHandle, RanksPlan
from learners.ranks.mailbox import Call, CheckpointPlan
from learners.settings.policy import PolicyLearnerConfig
from learners.settings.training import ExportedWeights
from learners.weights.link import GeneratorLink, LinkPlan

LINK_CALLS = (commands.link_epoch, commands.connect, commands.send_weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerFolders:
    """Where a learner writes, and what. Produced by `learners.run.composition`, consumed by `PolicyLearnerHandle`."""

    storage: Path  # Ray Train's own records
    weights: Path  # the run's folder in shared memory, where each host has its published weights
    weights_dtype: DType  # of published and exported weights: what generators compute in
    exported: ExportedWeights = "merged"
    probe: tuple[int, ...] = ()  # token ids by which generators of an adapter see that they sample with it


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
        to_publish = (folders.weights.absolute(), folders.weights_dtype, folders.probe)
        self._publish = Call(function=commands.publish, arguments=to_publish)
        self._published: PublishedWeights | None = None
        self._plan_of_links: LinkPlan | None = None
        self._link: GeneratorLink | None = None
        self._num_links = 0
        self._restart: LearnerRestartedError | None = None  # met by `send_again`, and not told yet

    def submit(self, batch: ScoredBatch, meanwhile: Callable[[], object] | None = None) -> UpdateResult:
        """Train on one batch. `meanwhile`: as of `call`."""
        result: UpdateResult = self.call(Call(function=commands.update, arguments=(ray.put(batch),)), meanwhile)
        return result

    def completion_logprobs(self, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]:
        """Of each trajectory: log-probabilities of the tokens that the policy chose, in nats, under the current policy."""
        logprobs: tuple[FloatArray, ...] = self.call(
            Call(function=commands.completion_logprobs, arguments=(ray.put(tuple(groups)),))
        )
        return logprobs

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
        """Of each trajectory that has a reward: log(policy / policy at the run's start), summed over its tokens, in nats."""
        kls: tuple[float, ...] = self.call(Call(function=commands.start_kl, arguments=(ray.put(tuple(groups)),)))
        return kls

    def rest(self) -> None:
        """Leave the devices to others: returns once the state of all ranks lies on their hosts."""
        self.call(Call(function=commands.rest))

    def wake(self) -> None:
        """Come back to the devices."""
        self.call(Call(function=commands.wake))

    def connect(self, plan: LinkPlan) -> None:
        """From here on, `publish` sends weights over devices instead of writing them."""
        self._plan_of_links = plan

    def publish(self) -> PublishedWeights:
        """Write the current weights where generators find them, or send them there."""
        self._tell_of_restart()
        plan = self._plan_of_links
        self._published = self.call(self._publish) if plan is None else self._send(plan, plan.generators())
        return self._published

    def send_again(self, generator: Any) -> SentWeights:
        """Send a new generator what the others hold; the next publication makes a link to all of them.

        Where the ranks were lost, the generator gets what they went back to, and the next call says so. Raising it here would
        reach the pool of generators, which can do nothing about it.
        """
        plan, published = self._plan_of_links, self._published
        assert plan is not None, "only generators that are fed over devices ask for this"
        assert published is not None, "a generator that comes before the first publication needs nothing"
        while True:
            try:
                weights = self._send(plan, (generator,))
            except LearnerRestartedError as error:
                self._restart = error
                continue  # lost again; the group says when it gives up
            if weights != published and self._restart is None:
                self._restart = LearnerRestartedError(
                    f"the learner's ranks hold version {weights.policy_version}, not {published.policy_version}, which was"
                    " published: they were lost and have started again from the newest checkpoint"
                )
            return weights

    def call(self, call: Call | None, meanwhile: Callable[[], object] | None = None) -> Any:
        """As in `RanksHandle`; raises the `LearnerRestartedError` that `send_again` met, too."""
        if call is not None and call.function not in LINK_CALLS:
            self._tell_of_restart()
        return super().call(call, meanwhile)

    def _tell_of_restart(self) -> None:
        restart, self._restart = self._restart, None
        if restart is not None:
            raise restart

    def _send(self, plan: LinkPlan, generators: tuple[Any, ...]) -> SentWeights:
        """Over the link that there is, or over a new one where a rank or a generator has changed."""
        link = self._link
        if link is None or link.generators != generators or self.call(Call(function=commands.link_epoch)) != link.epoch:
            self._num_links += 1
            link = plan.link(self._num_links, generators)
            self._link = None
            self.call(Call(function=commands.connect, arguments=(link,)))
            self._link = link
        weights: SentWeights = self.call(Call(function=commands.send_weights))
        return weights

    def export(self, directory: Path, texts: Sequence[ContractText]) -> str:
        """Write the current policy as a new Hugging Face folder, with its serving contract about `texts`.

        Returns why it could not be written; empty where it was.
        """
        arguments = (directory.absolute(), self._folders.weights_dtype, tuple(texts), self._folders.exported)
        problem: str = self.call(Call(function=commands.export, arguments=arguments))
        return problem
