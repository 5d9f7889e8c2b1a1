"""Records of trajectories for tests, from the few numbers that a test cares about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from cluster.errors import SamplesLostError
from cluster.processes.object_store import HeldObject
from cluster.storage.ledger import SampledGroups
from cluster.types import (
    Completion,
    CutGroup,
    FinishReason,
    GroupTexts,
    Prompt,
    ScoredBatch,
    ScoredGroup,
    Segment,
    Stored,
    Stretch,
    Trajectory,
    TrajectoryGroup,
    TrajectoryTokens,
    sample_of,
)

ValueT = TypeVar("ValueT", covariant=True)
EachT = TypeVar("EachT")
NO_FAILURES: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Gone(Stored[ValueT]):
    """A stored object that was lost with its node."""

    def fetch(self) -> ValueT:
        raise SamplesLostError("samples are lost with the node on which they lay")


def sampled(trained: Sequence[ScoredGroup], left_out: Sequence[ScoredGroup] = (), cut: Sequence[CutGroup] = ()) -> SampledGroups:
    """As the ledger takes them."""
    return SampledGroups(trained=tuple(trained), left_out=tuple(left_out), cut=tuple(cut))


def completion(*token_ids: int, text: str = "text", finish_reason: FinishReason = "stop") -> Completion:
    return Completion(token_ids=np.array(token_ids or (1,), np.int32), text=text, finish_reason=finish_reason)


def segment(
    prompt: Sequence[int], chosen: Sequence[int], *, logprobs: Sequence[float] | None = None, policy_version: int = 0
) -> Segment:
    """One turn: a prompt, and what the policy chose after it."""
    return Segment(
        token_ids=np.array([*prompt, *chosen], np.int32),
        action_mask=np.array([False] * len(prompt) + [True] * len(chosen)),
        rollout_logprobs=np.array([-1.0] * len(chosen) if logprobs is None else logprobs, np.float32),
        stretches=(Stretch(num_tokens=len(chosen), policy_version=policy_version),),
    )


def single_turn(
    prompt: Sequence[int], chosen: Sequence[int], *, logprobs: Sequence[float] | None = None, policy_version: int = 0
) -> TrajectoryTokens:
    return TrajectoryTokens(segments=(segment(prompt, chosen, logprobs=logprobs, policy_version=policy_version),))


def group_of(
    prompt: Prompt,
    completions: Mapping[int, Completion],
    *,
    logprob: float = -1.0,
    policy_version: int = 0,
    failures: Mapping[int, str] = NO_FAILURES,
    attempt: int = 1,
) -> TrajectoryGroup:
    """`completions`: by sample index; every token of theirs with the same log-probability."""
    tokens = {
        index: single_turn(
            prompt.token_ids,
            each.token_ids.tolist(),
            logprobs=[logprob] * len(each.token_ids),
            policy_version=policy_version,
        )
        for index, each in completions.items()
    }
    trajectories = [Trajectory(prompt=prompt, sample_index=index, completion=each) for index, each in completions.items()]
    return TrajectoryGroup(
        task_id=prompt.task.task_id,
        samples=tuple(sample_of(index, tokens[index], each.finish_reason) for index, each in completions.items()),
        texts=HeldObject(GroupTexts(prompt=prompt, trajectories=tuple(trajectories))),
        tokens=HeldObject(tuple(tokens.values())),
        failures=failures,
        attempt=attempt,
    )


def arrived(results: Iterator[EachT | None]) -> Iterator[EachT]:
    """What came, without the moments in which nothing did."""
    return (each for each in results if each is not None)


def without_the_first(batch: ScoredBatch) -> ScoredBatch:
    """The same batch, but for the tokens of its first group, which are lost."""
    first, *others = batch.groups
    return replace(batch, groups=(replace(first, group=replace(first.group, tokens=Gone())), *others))
