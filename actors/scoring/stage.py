"""The score stage, driver side: rewards from pools of scorers, while generators are still at work."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray import ObjectRef

from actors.config import HttpScorerConfig, PythonScorerConfig, RewardModelScorerConfig, ScorerConfig, SupervisionConfig
from actors.generation.rendering import PromptFormat
from actors.scoring.http_scorer import MAX_WAIT_S
from actors.scoring.remote import (
    HttpScorerActor,
    PythonScorerActor,
    RewardFunctionScorerActor,
    RewardModelScorerActor,
)
from actors.sources.models import resolve_model
from cluster.errors import ConfigError, DataError, RaywardError
from cluster.processes.dispatch.newcomers import resized
from cluster.processes.dispatch.whole import ask_all
from cluster.processes.placement import Seat, seat_of
from cluster.processes.pool import AGAIN, LOST, ActorPool
from cluster.processes.reservations.seats import Seats
from cluster.processes.supervision import PROGRESS_GROUP, Supervision
from cluster.processes.watchdog import Pending
from cluster.types import Reward, Score, ScoredGroup, StepScore, TrajectoryGroup, Unscored

POLL_S = 0.5
MAX_TRAJECTORIES_PER_CALL = 64  # what a lost scorer costs at most, and what an abandoned call keeps one busy with
MEMORY_ADVICE = "lower batch_size or num_replicas of scorers; `rayward plan` shows what each role takes"
FUNCTION_ACTORS = {"function": RewardFunctionScorerActor, "python": PythonScorerActor, "http": HttpScorerActor}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedScorer:
    """One configured scorer. Produced by `build_scorer_pools`, consumed by `ScorerPools`."""

    weight: float
    pool: ActorPool[Any]  # Ray actors of a `Scorer`
    is_on_device: bool = False  # of a `RewardModelScorer` on a GPU


@dataclass(slots=True, kw_only=True)
class _PendingGroup:
    group: TrajectoryGroup
    scores: dict[str, list[Score | Unscored]] = field(default_factory=dict)  # scorer name -> [G]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    scorer: str
    groups: list[_PendingGroup]


class ScorerPools:
    """All scorers of a run behind one call. For one thread of the driver."""

    def __init__(self, scorers: Mapping[str, WeightedScorer]) -> None:
        """`scorers`: by the name that is the key in the breakdown of a reward."""
        if not scorers:
            raise ConfigError("a run needs at least one scorer; add one to `scorers`")
        self._scorers = dict(scorers)

    def pending(self) -> list[Pending]:
        """What the scorers owe: the ids of prompts whose completions they judge. May be asked from any thread."""
        return [pending for scorer in self._scorers.values() for pending in scorer.pool.pending()]

    def num_replicas(self, name: str) -> int:
        """Of one scorer: those that take work, or are on their way."""
        return len(self._scorers[name].pool.names)

    def num_coming(self, name: str) -> int:
        """Of these, those that are on their way."""
        return len(self._scorers[name].pool.names) - len(self._scorers[name].pool)

    def resize(self, name: str, num_replicas: int) -> None:
        """Start replicas of one scorer, or let some go when they have done their work."""
        pool = self._scorers[name].pool
        pool.resize(resized(pool.names, num_replicas, partial(scorer_name, name)))

    def wait_until_ready(self) -> None:
        """Return when every scorer answers; raises with the name of one that does not start."""
        for scorer in self._scorers.values():
            scorer.pool.broadcast(lambda actor: actor.score.remote([]))

    def rest(self) -> None:
        """Reward models on a GPU leave it to others. One that is lost meanwhile is replaced first, for it starts on the GPU."""
        for pool in self._pools_on_devices():
            ask_all(pool, lambda actor: actor.rest.remote(), about="leaving its device")

    def wake(self) -> None:
        """Reward models come back to their GPUs."""
        for pool in self._pools_on_devices():
            pool.broadcast(lambda actor: actor.wake.remote(), about="coming back to its device")

    def _pools_on_devices(self) -> list[ActorPool[Any]]:
        return [scorer.pool for scorer in self._scorers.values() if scorer.is_on_device]

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup | None]:
        """Yield each group once all scorers have judged it, in order of completion. `groups` is consumed as it comes.

        Batches form by themselves: groups that arrive while a scorer is busy wait, and go to it together in its next call. None
        among `groups` says that none has come for a moment: what waits goes to the scorers that are done, while the last decode.
        Then None is yielded, too, so that the caller can turn to something else.
        """
        stream = _ScoringStream(self._scorers)
        try:
            for group in groups:
                if group is not None:
                    stream.submit(group)
                yield from stream.finished(timeout_s=0)
                if group is None:
                    yield None
            while stream.is_busy:
                yield from stream.finished(timeout_s=None)
        finally:
            stream.abandon()

    def score_together(self, groups: Sequence[TrajectoryGroup]) -> Iterator[ScoredGroup]:
        """The same for groups that are all there: each idle scorer gets its share of them in one call."""
        stream = _ScoringStream(self._scorers)
        try:
            stream.submit(*groups)
            while stream.is_busy:
                yield from stream.finished(timeout_s=None)
        finally:
            stream.abandon()


class _ScoringStream:
    """The groups of one `score_stream`, and the calls that are judging them."""

    def __init__(self, scorers: Mapping[str, WeightedScorer]) -> None:
        self._scorers = scorers
        self._waiting: dict[str, deque[_PendingGroup]] = {name: deque() for name in scorers}
        self._running: dict[ObjectRef, _Call] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self._running) or any(self._waiting.values())

    def submit(self, *groups: TrajectoryGroup) -> None:
        pending = [_PendingGroup(group=group) for group in groups]
        for name, waiting in self._waiting.items():
            waiting.extend(pending)
            self._start_calls(name)

    def finished(self, *, timeout_s: float | None) -> Iterator[ScoredGroup]:
        """Groups that are complete; waits up to `timeout_s` (None: for ever) for the first call to end."""
        while not (judged := [pending for name in self._scorers for pending in self._judged_by(name)]) and timeout_s is None:
            self._wait()
        for pending in {id(pending): pending for pending in judged}.values():  # perhaps by two scorers at once
            if len(pending.scores) == len(self._scorers):
                yield self._scored(pending)

    def abandon(self) -> None:
        """Nobody waits for what is left: its scorers are free for others."""
        for ref, call in self._running.items():
            self._scorers[call.scorer].pool.abandon([ref])
        self._running.clear()

    def _wait(self) -> None:
        """Until a call ends, or for a while: each pool looks after its own lost and joining actors when it is asked."""
        if self._running:
            ray.wait(list(self._running), timeout=POLL_S)
        else:
            time.sleep(POLL_S)

    def _judged_by(self, name: str) -> list[_PendingGroup]:
        """Groups that this scorer has judged by now; those of a lost actor go to another one."""
        judged = []
        refs = [ref for ref, call in self._running.items() if call.scorer == name]
        for ref, result in self._scorers[name].pool.finished(refs, timeout_s=0):
            call = self._running.pop(ref)
            if result is LOST or result is AGAIN:
                self._waiting[name].extendleft(reversed(call.groups))
                continue
            if isinstance(result, RaywardError):
                raise result
            scores = iter(_checked_scores(call, result))
            for pending in call.groups:
                pending.scores[name] = [next(scores) for _ in pending.group.samples]
            judged += call.groups
        self._start_calls(name)
        return judged

    def _start_calls(self, name: str) -> None:
        """Give all that waits to the idle actors, in equal shares."""
        waiting, pool = self._waiting[name], self._scorers[name].pool
        idle = [actor for actor, load in pool.loads().items() if not load]
        while waiting and idle:
            call = _Call(scorer=name, groups=_taken(waiting, share=-(-len(waiting) // len(idle))))
            texts = [pending.group.texts for pending in call.groups]
            about = ", ".join(pending.group.task_id for pending in call.groups)
            ref = pool.start(idle.pop(), lambda actor, given=texts: actor.score_stored.remote(given), about=about)  # type: ignore[misc]
            self._running[ref] = call

    def _scored(self, pending: _PendingGroup) -> ScoredGroup:
        rewards: list[Reward] = []
        problems: dict[int, str] = {}
        for index, sample in enumerate(pending.group.samples):
            scores = {name: pending.scores[name][index] for name in self._scorers}
            missing = [score.problem for score in scores.values() if isinstance(score, Unscored)]
            try:
                reward = self._reward({name: score for name, score in scores.items() if isinstance(score, Score)})
            except DataError as error:  # not finite
                missing.append(str(error))
            if missing:
                problems[sample.sample_index] = "; ".join(missing)
            else:
                rewards.append(reward)
        return ScoredGroup(group=pending.group, rewards=tuple(rewards), problems=problems)

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


def _taken(waiting: deque[_PendingGroup], *, share: int) -> list[_PendingGroup]:
    """Groups of one call: a share of those that wait, as long as that is little work, and one in any case."""
    taken = [waiting.popleft()]
    num_trajectories = len(taken[0].group.samples)
    while waiting and len(taken) < share and num_trajectories + len(waiting[0].group.samples) <= MAX_TRAJECTORIES_PER_CALL:
        taken.append(waiting.popleft())
        num_trajectories += len(taken[-1].group.samples)
    return taken


def build_scorer_pools(
    configs: Sequence[ScorerConfig],
    *,
    prompt_format: PromptFormat,
    supervision: SupervisionConfig,
    seats: Seats,
    note: Callable[[str], None],
) -> ScorerPools:
    """Start the actors of every configured scorer.

    `prompt_format`: that of the task, for reward models that read chats. `seats`: where they sit. `note`: told when a scorer is
    lost, and when it is back.
    """
    scorers = {}
    for config in configs:
        start = _starter(config, prompt_format, seats)
        pool = ActorPool(
            {name: start(name) for name in map(partial(scorer_name, config.name), range(config.num_replicas))},
            Supervision(
                start=start,
                give_back=seats.give_back,
                admission=_admission,
                progress=lambda scorer: scorer.progress.options(concurrency_group=PROGRESS_GROUP).remote(),
                deadline_s=supervision.deadline_s + longest_wait_s(config),
                start_deadline_s=supervision.start_deadline_s,
                max_losses=supervision.max_losses,
                memory_advice=MEMORY_ADVICE,
                note=note,
            ),
        )
        is_on_device = isinstance(config, RewardModelScorerConfig) and config.num_gpus > 0
        scorers[config.name] = WeightedScorer(weight=config.weight, pool=pool, is_on_device=is_on_device)
    return ScorerPools(scorers)


def scorer_name(scorer: str, index: int) -> str:
    """Of one of a scorer's actors."""
    return f"scorer {scorer} {index}"


def scorer_seats(configs: Iterable[ScorerConfig]) -> dict[str, Seat]:
    """What the actors of scorers need, by name."""
    return {scorer_name(config.name, index): _seat(config) for config in configs for index in range(config.num_replicas)}


def longest_wait_s(config: ScorerConfig) -> float:
    """How long a scorer may wait for one piece of its work by its own time-outs, which end that piece and not the scorer."""
    match config:
        case HttpScorerConfig():
            return config.timeout_s + MAX_WAIT_S
        case PythonScorerConfig():
            return config.timeout_s
    return 0.0


def _seat(config: ScorerConfig) -> Seat:
    return seat_of(config.num_cpus, config.num_gpus if isinstance(config, RewardModelScorerConfig) else 0.0)


def _starter(config: ScorerConfig, prompt_format: PromptFormat, seats: Seats) -> Callable[[str], Any]:
    """Starts one more actor of the scorer."""
    seat = _seat(config)
    if isinstance(config, RewardModelScorerConfig):
        local = config.model_copy(update={"model": resolve_model(config.model)})
        return lambda name: RewardModelScorerActor.options(**seats.options(name, seat)).remote(local, prompt_format)
    actor = FUNCTION_ACTORS[config.kind]
    return lambda name: actor.options(**seats.options(name, seat)).remote(config)


def _admission(scorer: Any) -> Generator[ObjectRef, Any, None]:
    """A scorer that answers has loaded all that it needs."""
    yield scorer.score.remote([])


def _checked_scores(call: _Call, scores: Sequence[Score | Unscored]) -> Sequence[Score | Unscored]:
    expected = sum(len(pending.group.samples) for pending in call.groups)
    if len(scores) != expected:
        raise DataError(f"scorer {call.scorer!r} returned {len(scores)} scores for {expected} trajectories; it owes one each")
    return scores
