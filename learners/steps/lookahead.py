"""Groups of a step while those of later steps are already in the making.

The prompts of step s are asked for once the weights of step s - `max_staleness` are published, so that no token of its batch is
older than that, and nothing that was sampled is ever too old to be used. A step takes its own prompts, whichever came first: a
run that goes on after a loss asks for the same ones again, and each trajectory is trained on once.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from cluster.errors import SamplesLostError
from cluster.types import Prompt, SamplingParameters, ScoredGroup, TrajectoryGroup
from learners.steps.collection import Collected, Scoring, in_order, sampling_of_step, with_enough_rewards
from learners.steps.prompt_schedule import PromptSchedule

PAUSE_S: Final = 0.1  # where nothing is in the making: whoever calls `advance` waits for something else


class OpenRollouts(Protocol):
    """The generators, asked for more as time goes by. Yields None where no group has come for a moment."""

    def collect_as_asked(
        self, requests: Iterable[tuple[Prompt, SamplingParameters] | None], *, largest_group: int
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup] | None]:
        """None among `requests` says that there is none for now."""


class Lookahead:
    """Implements `Collector`. `advance` keeps generators and scorers at work while something else is waited for."""

    def __init__(
        self,
        rollouts: OpenRollouts,
        scoring: Scoring,
        sampling: SamplingParameters,
        schedule: PromptSchedule,
        *,
        num_steps: int,
        max_staleness: int,
        min_rewards: int = 1,
    ) -> None:
        """`num_steps`: of the run; no step after the last is asked for. `min_rewards`: as of `PlainCollector`."""
        self._rollouts = rollouts
        self._scoring = scoring
        self._sampling = sampling
        self._schedule = schedule
        self._num_steps = num_steps
        self._max_staleness = max_staleness
        self._min_rewards = min_rewards
        self._stream: Iterator[ScoredGroup | None] | None = None
        self._lost: SamplesLostError | None = None
        self._num_open = 0  # steps whose prompts may be asked for
        self._step_of: dict[int, int] = {}  # by the seed that its completions were sampled with
        self._arrived: dict[int, list[ScoredGroup]] = {}  # by step
        self._at_scorers: dict[int, int] = {}  # group, by identity -> its step

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """Return once all groups of the step have come. Raises `SamplesLostError`, also for what was lost since the last one;
        then `give_up` comes next."""
        if self._lost is None:
            self._open(step)
        while len(self._arrived.get(step, ())) < len(prompts):
            if self._lost is not None:
                raise self._lost
            self.advance()
        return with_enough_rewards(in_order(self._arrived.pop(step), prompts), self._min_rewards)

    def advance(self) -> None:
        """Take one group that has come, or wait a moment for one. A loss of samples is kept for `collect` to tell: here the
        learner may be at work, on a step that knows nothing of it."""
        if self._stream is None:
            time.sleep(PAUSE_S)
            return
        try:
            scored = next(self._stream, None)
        except SamplesLostError as error:
            self._lost, self._stream = error, None
            return
        if scored is not None:
            self._arrived.setdefault(self._at_scorers.pop(id(scored.group)), []).append(scored)

    def give_up(self) -> None:
        """What is in the making was asked of weights that are lost; all of it is asked again, by the next `collect`."""
        if self._stream is not None:
            self._stream.close()  # type: ignore[attr-defined]  # a generator: it takes its calls back
        self._stream = self._lost = None
        self._num_open = 0
        self._arrived.clear()
        self._at_scorers.clear()

    def _open(self, step: int) -> None:
        """The weights of this step are published: let its prompts be asked for, and those of the steps that may use them."""
        self._num_open = min(step + self._max_staleness + 1, self._num_steps)
        if self._stream is None:
            self._stream = self._scoring.score_stream(self._groups(first_step=step))

    def _groups(self, *, first_step: int) -> Iterator[TrajectoryGroup | None]:
        asked = self._rollouts.collect_as_asked(self._requests(first_step), largest_group=self._sampling.samples_per_prompt)
        for each in asked:
            if each is None:
                yield None
                continue
            sampling, group = each
            self._at_scorers[id(group)] = self._step_of[sampling.seed]
            yield group

    def _requests(self, first_step: int) -> Iterator[tuple[Prompt, SamplingParameters] | None]:
        for step in range(first_step, self._num_steps):
            while step >= self._num_open:
                yield None
            sampling = sampling_of_step(self._sampling, step)
            self._step_of[sampling.seed] = step
            yield from ((prompt, sampling) for prompt in self._schedule.prompts_of(step))
