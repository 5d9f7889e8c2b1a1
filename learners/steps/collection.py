"""From the prompts of a step to scored groups: the plain way, with a greedy baseline, and with dynamic sampling.

Each way is a `Collector`; the last wraps another one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from cluster.seeding import derive_seed
from cluster.types import Prompt, SamplingParameters, ScoredGroup, TrajectoryGroup
from learners.steps.prompt_schedule import PromptSchedule


class Rollouts(Protocol):
    """The generators, seen from a collector."""

    def collect(self, prompts: Sequence[Prompt], sampling: SamplingParameters) -> Iterator[TrajectoryGroup]: ...


class MixedRollouts(Protocol):
    """The generators, asked for several ways of sampling at once."""

    def collect_each(
        self, requests: Sequence[tuple[Prompt, SamplingParameters]]
    ) -> Iterator[tuple[SamplingParameters, TrajectoryGroup]]: ...


class Scoring(Protocol):
    """The scorers, seen from a collector."""

    def score_stream(self, groups: Iterable[TrajectoryGroup]) -> Iterator[ScoredGroup]:
        """Each `ScoredGroup.group` is the object that was given, not a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Produced by a collector, consumed by the driver."""

    groups: tuple[ScoredGroup, ...]  # in the order of the prompts, for a batch must not depend on who was faster
    left_out: tuple[ScoredGroup, ...] = ()  # sampled, but not trained on: too few rewards, no contrast, or more than asked for
    metrics: dict[str, float]


class Collector(Protocol):
    """Makes scored groups of prompts."""

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected: ...


class PlainCollector:
    """One group a prompt. Scoring of the first groups overlaps the generation of the last."""

    def __init__(self, rollouts: Rollouts, scoring: Scoring, sampling: SamplingParameters, *, min_rewards: int = 1) -> None:
        """`min_rewards`: that a group needs; 2 for a method that compares the completions of one prompt."""
        self._rollouts = rollouts
        self._scoring = scoring
        self._sampling = sampling
        self._min_rewards = min_rewards

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """Sample with seeds derived from the step."""
        sampling = replace(self._sampling, seed=derive_seed(self._sampling.seed, "rollout", step))
        scored = _in_order(self._scoring.score_stream(self._rollouts.collect(prompts, sampling)), prompts)
        return Collected(
            groups=tuple(group for group in scored if len(group.rewards) >= self._min_rewards),
            left_out=tuple(group for group in scored if len(group.rewards) < self._min_rewards),
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
        sampling = replace(self._sampling, seed=derive_seed(self._sampling.seed, "rollout", step))
        greedy = replace(sampling, temperature=0.0, samples_per_prompt=1)
        greedy_groups: list[TrajectoryGroup] = []
        scored = list(self._scoring.score_stream(self._one_wave(prompts, sampling, greedy, greedy_groups)))
        is_greedy = {id(group) for group in greedy_groups}
        baselines = {each.group.prompt.task.task_id: each for each in scored if id(each.group) in is_greedy}
        sampled = [
            replace(each, greedy=baselines[each.group.prompt.task.task_id])
            for each in _in_order([each for each in scored if id(each.group) not in is_greedy], prompts)
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
    ) -> Iterator[TrajectoryGroup]:
        """All groups as they finish; the greedy ones are also added to `greedy_groups`."""
        requests = [(prompt, way) for prompt in prompts for way in (sampling, greedy)]
        for way, group in self._rollouts.collect_each(requests):
            if way is greedy:  # sampling at temperature 0 would be equal to it
                greedy_groups.append(group)
            yield group


class DynamicSampling:
    """Replaces groups whose completions all have one score, for they teach nothing. Source: DAPO, arXiv:2503.14476, 3.2."""

    def __init__(self, inner: Collector, schedule: PromptSchedule, *, max_rounds: int) -> None:
        self._inner = inner
        self._schedule = schedule
        self._max_rounds = max_rounds

    def collect(self, step: int, prompts: Sequence[Prompt]) -> Collected:
        """As many groups as prompts. Where further prompts do not bring contrast either, the first ones without it fill up."""
        collected = self._inner.collect(step, prompts)
        useful = [scored for scored in collected.groups if has_contrast(scored)]
        flat = [scored for scored in collected.groups if not has_contrast(scored)]
        left_out = list(collected.left_out)
        asked, rounds = list(prompts), 0
        while len(useful) < len(prompts) and rounds < self._max_rounds:
            further = self._schedule.further_prompts(step, asked, count=_num_to_ask(len(useful), len(asked), len(prompts)))
            if not further:
                break
            more = self._inner.collect(step, further)
            useful += [scored for scored in more.groups if has_contrast(scored)]
            flat += [scored for scored in more.groups if not has_contrast(scored)]
            left_out += more.left_out
            asked += further
            rounds += 1
        chosen, surplus = (useful + flat)[: len(prompts)], (useful + flat)[len(prompts) :]
        return Collected(
            groups=tuple(chosen),
            left_out=tuple(left_out + surplus),
            metrics={
                **collected.metrics,
                "buffer/resampling_rounds": float(rounds),
                "buffer/groups_without_contrast": float(len(flat)),
                "buffer/groups_filled_up": float(max(0, len(prompts) - len(useful))),
            },
        )


def _num_to_ask(num_useful: int, num_asked: int, num_wanted: int) -> int:
    """As many prompts as should bring the groups still missing, at the share that was useful so far; at most a step's worth.

    A further round costs a whole rollout's time, surplus groups only their own tokens.
    """
    missing = num_wanted - num_useful
    return min(num_wanted, -(-missing * num_asked // max(1, num_useful)))


def has_contrast(scored: ScoredGroup) -> bool:
    """Whether two completions of the group differ in score."""
    return len({reward.total for reward in scored.rewards}) > 1


def _in_order(scored: Iterable[ScoredGroup], prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    position = {prompt.task.task_id: index for index, prompt in enumerate(prompts)}
    return sorted(scored, key=lambda each: position[each.group.prompt.task.task_id])
