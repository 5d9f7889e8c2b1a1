"""Draws and judges completions of the current policy on fixed prompts; `evaluation` turns them into metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from cluster.errors import SamplesLostError
from cluster.types import Prompt, SamplingParameters, ScoredGroup, Trajectory
from learners.evaluation.results import EvaluatedCompletion
from learners.steps.collection import Rollouts, Scoring, in_order

MAX_LOST_ROUNDS = 5  # each with a node or more


class StartKL(Protocol):
    """The learner, as far as an evaluation needs it."""

    def start_kl(self, groups: Sequence[ScoredGroup]) -> tuple[float, ...]:
        """Nats of each trajectory that has a reward, in order."""


class Evaluator:
    """Evaluates on the same prompts with the same seeds each time, so that before and after can be laid side by side."""

    def __init__(
        self,
        *,
        prompts: Sequence[Prompt],
        rollouts: Rollouts,
        scoring: Scoring,
        learner: StartKL,
        judges: Mapping[str, Callable[[Trajectory], float]],
        sampling: SamplingParameters,
    ) -> None:
        """`judges`: by name; functions that nothing is trained against."""
        self._prompts = prompts
        self._rollouts = rollouts
        self._scoring = scoring
        self._learner = learner
        self._judges = judges
        self._sampling = sampling

    def run(self) -> list[EvaluatedCompletion]:
        """One entry a completion, in the order of the prompts. What is lost with a node on the way is drawn again."""
        for _ in range(MAX_LOST_ROUNDS - 1):
            try:
                return self._draw()
            except SamplesLostError:
                continue  # the pool has told of the generator that is lost
        return self._draw()

    def _draw(self) -> list[EvaluatedCompletion]:
        scored = in_order(self._scoring.score_stream(self._rollouts.collect(self._prompts, self._sampling)), self._prompts)
        judged = [
            (trajectory, reward.total)
            for group in scored
            for trajectory, reward in zip(group.of_scored(group.group.texts.fetch().trajectories), group.rewards, strict=True)
        ]
        kls = self._learner.start_kl(scored)
        return [
            EvaluatedCompletion(
                prompt=trajectory.prompt.text,
                completion=trajectory.completion.text,
                score=score,
                judgements={name: judge(trajectory) for name, judge in self._judges.items()},
                num_tokens=len(trajectory.completion.token_ids),
                kl_nats=kl_nats,
            )
            for (trajectory, score), kl_nats in zip(judged, kls, strict=True)
        ]
