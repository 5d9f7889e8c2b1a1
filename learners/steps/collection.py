"""From the prompts of a step to scored groups: the plain way, with a greedy baseline, and with dynamic sampling.

Each way is a `Collector`; the last wraps another one.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cluster.processes.object_store import HeldObject, fetch_all
from cluster.seeding import derive_seed
from cluster.storage.ledger_writer import LedgerWriter
from cluster.types import CutGroup, Prompt, SamplingParameters, ScoredGroup, TrajectoryGroup
from learners.steps.prompt_schedule import PromptSchedule

NUM_PAST_STEPS = 4  # whose groups say how many of a step will be useful


class Rollouts(Protocol):
    """The generators, seen from a collector. Yields None where no group has come for a moment."""

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Generator[TrajectoryGroup | None, None, None]:
        """Closed, it takes back what has not come."""


class MixedRollouts(Protocol):
    """The generators, asked for several ways of sampling at once. Yields None where no group has come for a moment."""

    def collect_each(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]]
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup] | None]: ...


class Scoring(Protocol):
    """The scorers, seen from a collector."""

    def score_stream(self, groups: Iterable[TrajectoryGroup | None]) -> Iterator[ScoredGroup | None]:
        """Each `ScoredGroup.group` is the object that was given, not a copy. None where none has come for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Produced by a collector, consumed by the driver."""

    groups: tuple[ScoredGroup, ...]  # in the order of the prompts, for a batch must not depend on who was faster
    left_out: tuple[ScoredGroup, ...] = ()  # sampled, but not trained on: too few rewards, no contrast, or more than asked for
    cut: tuple[CutGroup, ...] = ()  # taken back before all their completions were there
    metrics: dict[str, float]


class Collector(Protocol):
    """Makes scored groups of prompts."""

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected: ...


class PlainCollector:
    """One group a prompt. Each goes to the scorers once it is complete, while others decode."""

    def __init__(self, rollouts: Rollouts, scoring: Scoring, sampling: SamplingParameters, *, min_rewards: int = 1) -> None:
        """`min_rewards`: that a group needs; 2 for a method that compares the completions of one prompt."""
        self._rollouts = rollouts
        self._scoring = scoring
        self._sampling = sampling
        self._min_rewards = min_rewards

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """Sample with seeds derived from the step."""
        sampling = sampling_of_step(self._sampling, step)
        scored = in_order(self._scoring.score_stream(self._rollouts.collect(prompts, sampling)), prompts)
        return with_enough_rewards(scored, self._min_rewards)


def sampling_of_step(sampling: SamplingParameters, step: int) -> SamplingParameters:
    """With a seed of the step's own, which no order of work changes."""
    return replace(sampling, seed=derive_seed(sampling.seed, "rollout", step))


def with_enough_rewards(scored: Sequence[ScoredGroup], min_rewards: int) -> Collected:
    """Groups of fewer rewards are left out."""
    return Collected(
        groups=tuple(group for group in scored if len(group.rewards) >= min_rewards),
        left_out=tuple(group for group in scored if len(group.rewards) < min_rewards),
        metrics={},
    )


class GreedyBaseline:
    """Also decodes each prompt greedily, in the same wave; the score of that completion is the group's baseline.

    Source: arXiv:2310.10505.
    """

    def __init__(self, rollouts: MixedRollouts, scoring: Scoring, sampling: SamplingParameters) -> None:
        self._rollouts = rollouts
        self._scoring = scoring
        self._sampling = sampling

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """The sampled groups, each with its baseline."""
        sampling = sampling_of_step(self._sampling, step)
        greedy = replace(sampling, temperature=0.0, samples_per_prompt=1)
        greedy_groups: list[TrajectoryGroup] = []
        wave = self._scoring.score_stream(self._one_wave(prompts, sampling, greedy, greedy_groups))
        scored = [each for each in wave if each is not None]
        is_greedy = {id(group) for group in greedy_groups}
        baselines = {each.group.task_id: each for each in scored if id(each.group) in is_greedy}
        sampled = [
            replace(each, greedy=baselines[each.group.task_id])
            for each in in_order([each for each in scored if id(each.group) not in is_greedy], prompts)
        ]
        return Collected(
            groups=tuple(each for each in sampled if each.rewards and each.greedy and each.greedy.rewards),
            left_out=tuple(each for each in sampled if not (each.rewards and each.greedy and each.greedy.rewards)),
            metrics={},
        )

    def _one_wave(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParameters,
        greedy: SamplingParameters,
        greedy_groups: list[TrajectoryGroup],
    ) -> Iterator[TrajectoryGroup | None]:
        """All groups as they finish; the greedy ones are also added to `greedy_groups`."""
        requests = [(prompt, way) for prompt in prompts for way in (sampling, greedy)]
        for each in self._rollouts.collect_each(requests):
            if each is None:
                yield None
                continue
            way, group = each
            if way is greedy:  # sampling at temperature 0 would be equal to it
                greedy_groups.append(group)
            yield group


class DynamicSampling:
    """Replaces groups whose completions all have one score, for they teach nothing. Source: DAPO, arXiv:2503.14476, 3.2.

    Further prompts are asked for ahead, behind those of the step, so that engines have work while the step's last completions
    decode. How many follows from the ledger of the steps before and not from who was faster: a run that is resumed or repeated
    asks for the same prompts.
    """

    def __init__(self, inner: Collector, schedule: PromptSchedule, ledger: LedgerWriter, *, max_rounds: int) -> None:
        """`max_rounds`: of further prompts that are waited for; at most so many times a step's prompts are asked for besides."""
        self._inner = inner
        self._schedule = schedule
        self._ledger = ledger
        self._max_rounds = max_rounds

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """As many groups as prompts. Where further prompts do not bring contrast either, the first ones without it fill up."""
        num_wanted, most = len(prompts), (1 + self._max_rounds) * len(prompts)
        num_ahead = max(0, _num_for(num_wanted, *self._past_use(step)) - num_wanted)
        ahead = self._schedule.further_prompts(step, prompts, count=min(num_ahead, num_wanted))
        asked = [*prompts, *ahead]
        waves = [self._inner.collect(step, asked)]
        while (num_useful := sum(map(has_contrast, _groups(waves)))) < num_wanted and len(waves) <= self._max_rounds:
            count = min(_num_for(num_wanted - num_useful, num_useful, len(asked)), num_wanted, most - len(asked))
            further = self._schedule.further_prompts(step, asked, count=count)
            if not further:
                break
            waves.append(self._inner.collect(step, further))
            asked += further
        useful = [scored for scored in _groups(waves) if has_contrast(scored)]
        flat = [scored for scored in _groups(waves) if not has_contrast(scored)]
        chosen, surplus = (useful + flat)[:num_wanted], (useful + flat)[num_wanted:]
        return Collected(
            groups=tuple(chosen),
            left_out=tuple([scored for wave in waves for scored in wave.left_out] + surplus),
            metrics={
                **waves[0].metrics,
                "buffer/prompts_asked_ahead": float(len(ahead)),
                "buffer/resampling_rounds": float(len(waves) - 1),
                "buffer/groups_without_contrast": float(len(flat)),
                "buffer/groups_filled_up": float(max(0, num_wanted - len(useful))),
            },
        )

    def _past_use(self, step: int) -> tuple[int, int]:
        """(groups with contrast, groups) of the steps just before; all of none where there were none."""
        rewards: dict[tuple[int, str], set[float]] = {}
        for past_step in range(max(0, step - NUM_PAST_STEPS), step):
            for entry in self._ledger.entries_of(past_step):
                of_group = rewards.setdefault((past_step, entry.task_id), set())
                if entry.reward is not None and not entry.is_greedy:
                    of_group.add(entry.reward)
        return sum(len(of_group) > 1 for of_group in rewards.values()), len(rewards)


def _groups(waves: Sequence[Collected]) -> list[ScoredGroup]:
    return [scored for wave in waves for scored in wave.groups]


def _num_for(num_missing: int, num_useful: int, num_asked: int) -> int:
    """As many prompts as should bring the groups that are missing, at the share of those asked that were useful.

    A further round costs a whole rollout's time, surplus groups only their own tokens.
    """
    return -(-num_missing * num_asked // max(1, num_useful))


def for_the_ledger(groups: Sequence[ScoredGroup], *, num_earlier_rounds: int) -> tuple[ScoredGroup, ...]:
    """The same groups with their texts, which no loss of a node takes from the driver any more.

    `num_earlier_rounds`: in which all of them were sampled before, and lost; each is one more attempt. Raises `SamplesLostError`.
    """
    texts = iter(fetch_all([group.texts for scored in groups for group in _with_greedy(scored)]))

    def held(scored: ScoredGroup) -> ScoredGroup:
        group = replace(scored.group, texts=HeldObject(next(texts)), attempt=scored.group.attempt + num_earlier_rounds)
        return replace(scored, group=group, greedy=held(scored.greedy) if scored.greedy else None)

    return tuple(map(held, groups))


def _with_greedy(scored: ScoredGroup) -> list[TrajectoryGroup]:
    return [scored.group] + ([scored.greedy.group] if scored.greedy else [])


def has_contrast(scored: ScoredGroup) -> bool:
    """Whether two completions of the group differ in score."""
    return len({reward.total for reward in scored.rewards}) > 1


def in_order(scored: Iterable[ScoredGroup | None], prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """In the order of the prompts, for a batch must not depend on who was faster."""
    position = {prompt.task.task_id: index for index, prompt in enumerate(prompts)}
    return sorted((each for each in scored if each is not None), key=lambda each: position[each.group.task_id])
