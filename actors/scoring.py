"""The score stage, driver side: rewards from pools of scorers, while generators are still at work."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from actors.config import RewardModelScorerConfig, ScorerConfig
from actors.model_source import resolve_model
from actors.remote import HttpScorerActor, PythonScorerActor, RewardFunctionScorerActor, RewardModelScorerActor
from actors.rendering import PromptFormat
from cluster.errors import ConfigError, DataError, RaywardError
from cluster.pool import ActorPool
from cluster.types import Reward, Score, ScoredGroup, StepScore, TrajectoryGroup

FUNCTION_ACTORS = {"function": RewardFunctionScorerActor, "python": PythonScorerActor, "http": HttpScorerActor}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedScorer:
    """One configured scorer. Produced by `build_scoring`, consumed by `Scoring`."""

    weight: float
    pool: ActorPool[Any]  # Ray actors of a `Scorer`


@dataclass(slots=True, kw_only=True)
class _PendingGroup:
    group: TrajectoryGroup
    scores: dict[str, list[Score]] = field(default_factory=dict)  # scorer name -> [G]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    scorer: str
    actor: Any
    groups: list[_PendingGroup]


class Scoring:
    """All scorers of a run behind one call. For one thread of the driver."""

    def __init__(self, scorers: Mapping[str, WeightedScorer]) -> None:
        """`scorers`: by the name that is the key in the breakdown of a reward."""
        if not scorers:
            raise ConfigError("a run needs at least one scorer; add one to `scorers`")
        self._scorers = dict(scorers)

    def wait_until_ready(self) -> None:
        """Return when every scorer answers; raises with the name of one that does not start."""
        for scorer in self._scorers.values():
            scorer.pool.broadcast(lambda actor: actor.score.remote([]))

    def score_stream(self, groups: Iterable[TrajectoryGroup]) -> Iterator[ScoredGroup]:
        """Yield each group once all scorers have judged it, in order of completion. `groups` is consumed as it comes.

        Batches form by themselves: groups that arrive while a scorer is busy wait, and go to it together in its next call.
        """
        stream = _ScoringStream(self._scorers)
        for group in groups:
            stream.submit(group)
            yield from stream.finished(timeout_s=0)
        while stream.is_busy:
            yield from stream.finished(timeout_s=None)


class _ScoringStream:
    """The groups of one `score_stream`, and the calls that are judging them."""

    def __init__(self, scorers: Mapping[str, WeightedScorer]) -> None:
        self._scorers = scorers
        self._waiting: dict[str, deque[_PendingGroup]] = {name: deque() for name in scorers}
        self._idle = {name: list(scorer.pool.actors.values()) for name, scorer in scorers.items()}
        self._running: dict[ObjectRef, _Call] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._running)

    def submit(self, group: TrajectoryGroup) -> None:
        pending = _PendingGroup(group=group)
        for name, waiting in self._waiting.items():
            waiting.append(pending)
            self._start_calls(name)

    def finished(self, *, timeout_s: float | None) -> Iterator[ScoredGroup]:
        """Groups that are complete; waits up to `timeout_s` (None: for ever) for the first call to end."""
        done, _ = ray.wait(list(self._running), num_returns=len(self._running) if timeout_s == 0 else 1, timeout=timeout_s)
        for ref in done:
            call = self._running.pop(ref)
            scores = iter(_checked_scores(call, _result(call, ref)))
            for pending in call.groups:
                pending.scores[call.scorer] = [next(scores) for _ in pending.group.trajectories]
            self._idle[call.scorer].append(call.actor)
            self._start_calls(call.scorer)
            for pending in call.groups:
                if len(pending.scores) == len(self._scorers):
                    yield self._scored(pending)

    def _start_calls(self, name: str) -> None:
        """Give all that waits to the idle actors, in equal shares."""
        waiting, idle = self._waiting[name], self._idle[name]
        while waiting and idle:
            share = -(-len(waiting) // len(idle))
            call = _Call(scorer=name, actor=idle.pop(), groups=[waiting.popleft() for _ in range(share)])
            trajectories = [trajectory for pending in call.groups for trajectory in pending.group.trajectories]
            self._running[call.actor.score.remote(trajectories)] = call

    def _scored(self, pending: _PendingGroup) -> ScoredGroup:
        rewards = []
        for index, trajectory in enumerate(pending.group.trajectories):
            try:
                rewards.append(self._reward({name: pending.scores[name][index] for name in self._scorers}))
            except DataError as error:
                raise DataError(f"task {trajectory.prompt.task.task_id!r}, sample {trajectory.sample_index}: {error}") from error
        return ScoredGroup(group=pending.group, rewards=tuple(rewards))

    def _reward(self, scores: Mapping[str, Score]) -> Reward:
        """`scores`: by scorer."""
        weights = {name: self._scorers[name].weight for name in scores}
        return Reward(
            total=sum(weights[name] * score.value for name, score in scores.items()),
            breakdown={name: score.value for name, score in scores.items()},
            steps=tuple(
                StepScore(token_index=step.token_index, score=weights[name] * step.score)
                for name, score in scores.items()
                for step in score.steps
            ),
        )


def build_scoring(configs: Sequence[ScorerConfig], *, prompt_format: PromptFormat) -> Scoring:
    """Start the actors of every configured scorer. `prompt_format`: that of the task, for reward models that read chats."""
    return Scoring(
        {
            config.name: WeightedScorer(weight=config.weight, pool=ActorPool(_start_actors(config, prompt_format)))
            for config in configs
        }
    )


def _start_actors(config: ScorerConfig, prompt_format: PromptFormat) -> dict[str, Any]:
    names = [f"scorer {config.name} {index}" for index in range(config.num_replicas)]
    if isinstance(config, RewardModelScorerConfig):
        local = config.model_copy(update={"model": resolve_model(config.model)})
        model_actor = RewardModelScorerActor.options(num_cpus=config.num_cpus, num_gpus=config.num_gpus)
        return {name: model_actor.remote(local, prompt_format) for name in names}
    function_actor = FUNCTION_ACTORS[config.kind].options(num_cpus=config.num_cpus)
    return {name: function_actor.remote(config) for name in names}


def _result(call: _Call, ref: ObjectRef) -> list[Score]:
    try:
        return ray.get(ref)
    except RayActorError as error:
        raise RaywardError(f"an actor of scorer {call.scorer!r} is lost: {error}") from error
    except RayTaskError as error:
        if isinstance(error.cause, RaywardError):
            raise error.cause from error
        raise RaywardError(f"scorer {call.scorer!r} failed: {error.cause!r}") from error


def _checked_scores(call: _Call, scores: list[Score]) -> list[Score]:
    expected = sum(len(pending.group.trajectories) for pending in call.groups)
    if len(scores) != expected:
        raise DataError(f"scorer {call.scorer!r} returned {len(scores)} scores for {expected} trajectories; it owes one each")
    return scores
