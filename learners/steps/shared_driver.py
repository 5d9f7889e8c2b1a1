"""The control loop on shared devices: those that sample and those that learn take turns; who has none lies in host memory.

Turns are handed over as a whole. To the learner: engines sleep, scorers move to the host, then the learner comes. Back: the
learner leaves, engines wake their weights only, take over the new ones, and then wake their cache, so that old weights, new ones
and the cache are never on a device together. All of it may be asked for again, so a loss in the middle needs no bookkeeping.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cluster.errors import LearnerRestartedError
from cluster.storage.serving_contract import ContractText
from cluster.types import FloatArray, PublishedWeights, ScoredBatch, ScoredGroup, TrajectoryGroup, UpdateResult
from learners.steps.driver import Driver, Generators


class SleepingGenerators(Generators, Protocol):
    """Engines that can leave their devices; each call returns when all have done it, those that replaced lost ones, too."""

    def sleep(self) -> None: ...

    def wake_weights(self) -> None: ...

    def wake_cache(self) -> None: ...


class Resting(Protocol):
    """Scorers, or a learner, whose state can lie on the host. Asked for what is so already, they do nothing."""

    def rest(self) -> None: ...

    def wake(self) -> None: ...


class RestingLearner(Resting, Protocol):
    """The learner, as far as it is asked between steps, too. New ranks begin on the host."""

    def publish(self) -> PublishedWeights: ...

    def completion_logprobs(self, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]: ...

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]: ...

    def export(self, directory: Path, texts: Sequence[ContractText]) -> str: ...


class Turns:
    """Who has the devices. At the start those that sample do."""

    def __init__(
        self, generators: SleepingGenerators, scorers: Resting, learner: RestingLearner, *, engines_forget: bool
    ) -> None:
        """`engines_forget`: their weights, when they sleep. Then they get them again also where they are not new."""
        self._generators = generators
        self._scorers = scorers
        self._learner = learner
        self._engines_forget = engines_forget

    def to_learner(self) -> None:
        """Nobody else has anything on the devices when the learner comes."""
        self._generators.sleep()
        self._scorers.rest()
        self._learner.wake()

    def publish(self, weights: PublishedWeights) -> None:
        """As of `Generators`; those that sample have the devices when it returns."""
        self._learner.rest()
        self._generators.wake_weights()
        self._generators.publish(weights)
        self._let_sample()

    @contextmanager
    def learners(self) -> Iterator[None]:
        """Inside, the learner has the devices; afterwards, whatever happens, those that sample have them again."""
        try:
            self.to_learner()
            yield
        finally:
            self.hand_back()

    def hand_back(self) -> None:
        """To those that sample, with the weights that they had.

        Ranks that are lost meanwhile have nothing on the devices any more. So that is told after it is done: raises
        `LearnerRestartedError`.
        """
        restart: LearnerRestartedError | None = None
        while True:
            try:
                self._hand_back()
                break
            except LearnerRestartedError as error:
                restart = error  # lost again; the group says when it gives up
        if restart is not None:
            raise restart

    def _hand_back(self) -> None:
        if self._engines_forget:
            self.publish(self._learner.publish())
            return
        self._learner.rest()
        self._generators.wake_weights()
        self._let_sample()

    def _let_sample(self) -> None:
        self._scorers.wake()
        self._generators.wake_cache()


class LearnerInTurn:
    """The learner, for those who ask it between steps: it gets the devices for each call."""

    def __init__(self, learner: RestingLearner, turns: Turns) -> None:
        self._learner = learner
        self._turns = turns

    def completion_logprobs(self, groups: Sequence[TrajectoryGroup]) -> tuple[FloatArray, ...]:
        with self._turns.learners():
            return self._learner.completion_logprobs(groups)

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
        with self._turns.learners():
            return self._learner.start_kl(groups)

    def export(self, directory: Path, texts: Sequence[ContractText]) -> str:
        with self._turns.learners():
            return self._learner.export(directory, texts)


class SharedDriver(Driver):
    """A `Driver` whose generators are `Turns`."""

    _generators: Turns

    def _learn(self, batch: ScoredBatch) -> UpdateResult:
        self._generators.to_learner()
        return super()._learn(batch)

    def _forget_samples(self) -> None:
        self._generators.hand_back()  # they are sampled again
